"""What Node runs: the program of an answer and the program of its tests, each in a realm or a process of its own.

Between the two only text crosses: JSON, with a tag where JavaScript has more than JSON. What arrives is built anew, so that
neither a `toString` nor a getter of the answer comes along.
"""

from __future__ import annotations

SYNTAX_ERROR_EXIT, ASSERTION_EXIT, ANSWER_GONE_EXIT = 97, 96, 95

# Values to JSON and back. `kept` holds what has no such form, which the other side calls by its number.
_CODEC = r"""
const codec = (called) => {
  const { isArray } = Array, { keys, is, getPrototypeOf } = Object, kept = [];
  const pack = (value, depth) => {
    if (depth > 1500) throw new RangeError('a value is nested too deeply');
    if (typeof value === 'number') return Number.isFinite(value) && !is(value, -0) ? value : ['n', is(value, -0) ? '-0' : `${value}`];
    if (typeof value === 'undefined') return ['u'];
    if (typeof value === 'bigint') return ['b', `${value}`];
    if (typeof value === 'symbol') return ['y', value.description];
    if (typeof value === 'function') return ['f', kept.push(value) - 1];
    if (typeof value !== 'object' || value === null) return value;
    const each = (items) => items.map((item) => pack(item, depth + 1));
    if (isArray(value)) return ['a', ...each(Array.from(value))];
    if (value instanceof Map) return ['m', ...each([...value].flat(1))];
    if (value instanceof Set) return ['s', ...each([...value])];
    if (value instanceof Date) return ['d', pack(value.getTime(), 0)];
    if (value instanceof RegExp) return ['r', `${value.source}`, `${value.flags}`];
    const plain = getPrototypeOf(value) === Object.prototype || getPrototypeOf(value) === null;
    return [plain ? 'o' : 'i', ...keys(value).map((name) => [`${name}`, pack(value[name], depth + 1)])];
  };
  class Instance {}
  const unpack = (data) => {
    if (typeof data !== 'object' || data === null) return data;
    const [tag, ...rest] = data;
    if (tag === 'n') return Number(rest[0]);
    if (tag === 'u') return undefined;
    if (tag === 'b') return BigInt(rest[0]);
    if (tag === 'y') return Symbol(rest[0]);
    if (tag === 'f') return called(rest[0]);
    if (tag === 'a') return rest.map(unpack);
    if (tag === 's') return new Set(rest.map(unpack));
    if (tag === 'd') return new Date(unpack(rest[0]));
    if (tag === 'r') return new RegExp(rest[0], rest[1]);
    if (tag === 'm') {
      const map = new Map();
      for (let i = 0; i < rest.length; i += 2) map.set(unpack(rest[i]), unpack(rest[i + 1]));
      return map;
    }
    const made = tag === 'o' ? {} : new Instance();
    const open = { enumerable: true, configurable: true, writable: true };
    for (const [name, value] of rest) Object.defineProperty(made, name, { value: unpack(value), ...open });
    return made;
  };
  return { kept, pack: (value) => pack(value, 0), unpack };
};
"""

# The answer's side: answers a request [function's number, arguments] with [result, arguments after] or [name, message].
_ANSWERING = r"""
const answering = (callBack) => {
  const { stringify, parse } = JSON;
  const { kept, pack, unpack } = codec((number) => (...args) => callBack(number, args));
  return {
    keep: (functions) => { for (const name in functions) kept[name] = functions[name]; },
    kinds: (names) => stringify(names.map((name) => pack(kept[name]))),
    ask: (text) => {
      const [number, before] = parse(text);
      try {
        const args = before.map(unpack), result = pack(kept[number](...args)), after = args.map((arg) => {
          try { return pack(arg); } catch { return null; } });
        return stringify({ result, after: stringify(after) === stringify(before) ? null : after });
      } catch (error) {
        let name = 'Error', message = '', stack = '';
        try { name = `${error.name}`; message = `${error.message}`; stack = `${error.stack}`; } catch {}
        return stringify({ error: [name, message, stack] });
      }
    },
    pack, unpack,
  };
};
"""

# The tests' side. `ask` sends a request and returns the reply, both as text.
_ASKING = r"""
const asking = (ask) => {
  const { pack, unpack, kept } = codec((number) => function (...args) { return call(number, args); });
  const renew = (old, fresh) => {
    if (Array.isArray(old) && Array.isArray(fresh)) { old.length = 0; old.push(...fresh); }
    else if (typeof old === 'object' && old !== null && typeof fresh === 'object' && fresh !== null) {
      if (old instanceof Map || old instanceof Set) {
        old.clear(); for (const item of fresh) { if (old instanceof Map) old.set(...item); else old.add(item); }
      } else { for (const name of Object.keys(old)) delete old[name]; Object.assign(old, fresh); }
    }
  };
  const call = (number, args) => {
    const reply = JSON.parse(ask(JSON.stringify([number, args.map((arg) => pack(arg))])));
    if (reply.error) {
      const [name, message, stack] = reply.error.map(String);
      const kinds = { TypeError, RangeError, SyntaxError, ReferenceError, EvalError, URIError };
      const error = new (Object.hasOwn(kinds, name) ? kinds[name] : Error)(message);
      if (!Object.hasOwn(kinds, name)) error.name = name;
      Object.defineProperty(error, 'there', { value: stack });
      throw error;
    }
    if (reply.after) reply.after.forEach((data, index) => renew(args[index], unpack(data)));
    return unpack(reply.result);
  };
  return { unpack, kept };
};
"""

# The program of an answer, in a Node of its own. Its tests ask over descriptor 3; when they hang up, the program goes on to
# whatever it still waits for, and ends by itself.
ANSWER_RUNNER = (
    (
        r"""
'use strict';
const fs = require('fs'), vm = require('vm');
const { end, names } = JSON.parse(fs.readFileSync('words.json', 'utf8'));
fs.unlinkSync('words.json');
const { readSync, writeSync } = fs, leave = process.reallyExit.bind(process);
const table = names.map((name, index) => `${index}: typeof ${name} === 'undefined' ? undefined : ${name}`).join(', ');
const source = fs.readFileSync('task.js', 'utf8') + `\n;${end}({${table}});`;
const send = (text) => { let data = Buffer.from(`${text}\n`); while (data.length) data = data.subarray(writeSync(3, data)); };
let rest = '';
const receive = () => {
  const piece = Buffer.alloc(65536), pieces = [Buffer.from(rest, 'latin1')];
  for (;;) {
    const last = pieces[pieces.length - 1], at = last.indexOf(10);
    if (at >= 0) {
      rest = last.subarray(at + 1).toString('latin1');
      pieces[pieces.length - 1] = last.subarray(0, at);
      return Buffer.concat(pieces).toString('utf8');
    }
    const count = readSync(3, piece);
    if (count === 0) return null;
    pieces.push(Buffer.from(piece.subarray(0, count)));
  }
};
"""
        + _CODEC
        + _ANSWERING
        + r"""
let program;
try {
  // A parameter named arguments: by that word a program would come at the others.
  program = vm.compileFunction(
    source, ['exports', 'require', 'module', '__filename', '__dirname', end, 'arguments'], {filename: 'task.js'});
} catch (error) {
  writeSync(2, String(error.stack) + '\n');
  leave(SYNTAX_ERROR);
}
const side = answering((number, args) => {
  send(JSON.stringify({ back: [number, args.map(side.pack)] }));
  const [wrong, value] = JSON.parse(receive());
  if (wrong) throw new Error(value);
  return side.unpack(value);
});
let failed = 0;
const print = console.assert, assert = (value, ...more) => { if (!value) failed += 1; print(value, ...more); };
Object.defineProperty(console, 'assert', {value: assert, writable: false, configurable: false});
const task = {exports: {}};
let serving = false;
const serve = (functions) => { side.keep(functions); serving = true; };
program.call(task.exports, task.exports, require, task, process.cwd() + '/task.js', process.cwd(), serve);
if (!serving) leave(1);
process.on('exit', (code) => { if (code === 0 && failed) leave(ASSERTION); });
send(side.kinds(names.map((_, index) => index)));
for (let text = receive(); text !== null; text = receive()) send(side.ask(text));
"""
    )
    .replace("SYNTAX_ERROR", str(SYNTAX_ERROR_EXIT))
    .replace("ASSERTION", str(ASSERTION_EXIT))
)

# The program of the tests, on standard input of another Node. console.assert only prints and leaves the exit code 0: so it
# counts. PARTS is {source, whole, tests, names, theirs, sentinel}; the source is only compiled, because the two must fit
# together. The names behind the first `theirs` are those that the answer has of the prompt's helpers.
_TESTS_RUNNER = (
    r"""
'use strict';
const fs = require('fs'), vm = require('vm'), parts = PARTS, folder = process.cwd();
const words = ['exports', 'require', 'module', '__filename', '__dirname'];
try { vm.compileFunction(`${parts.source}\n${parts.whole}`, words, { filename: 'task.js' }); } catch (error) {
  fs.writeSync(2, String(error.stack) + '\n');
  process.reallyExit(SYNTAX_ERROR);
}
"""
    + _CODEC
    + _ASKING
    + r"""
const gone = () => process.reallyExit(ANSWER_GONE);
const send = (text) => {
  let data = Buffer.from(`${text}\n`);
  try { while (data.length) data = data.subarray(fs.writeSync(3, data)); } catch { gone(); }
};
let rest = Buffer.alloc(0);
const receive = () => {
  const piece = Buffer.alloc(65536), pieces = [rest];
  for (let size = rest.length; size < 64 * 2 ** 20;) {
    const last = pieces[pieces.length - 1], at = last.indexOf(10);
    if (at >= 0) {
      rest = last.subarray(at + 1);
      pieces[pieces.length - 1] = last.subarray(0, at);
      return Buffer.concat(pieces).toString('utf8');
    }
    let count = 0;
    try { count = fs.readSync(3, piece); } catch {}
    if (count === 0) gone();
    size += count;
    pieces.push(Buffer.from(piece.subarray(0, count)));
  }
  return gone();
};
const parsed = (text) => { try { return JSON.parse(text); } catch { return gone(); } };
const exchanged = (text) => {
  send(text);
  for (;;) {
    const answer = receive(), { back } = parsed(answer) ?? {};
    if (!back) return answer;
    let reply;
    try { reply = [false, side.pack(side.kept[back[0]](...back[1].map(side.unpack)))]; }
    catch (error) { reply = [true, String(error && error.message)]; }
    send(JSON.stringify(reply));
  }
};
const side = asking(exchanged);
let failed = 0;
const print = console.assert;
console.assert = (value, ...more) => { if (!value) failed += 1; print(value, ...more); };
const values = parsed(receive());
const run = (tests, names) => {
  const program = vm.compileFunction(tests, [...words, ...names], { filename: 'tests.js' });
  const given = names.map((_, index) => side.unpack(values[index]));
  program.call({}, {}, require, { exports: {} }, `${folder}/task.js`, folder, ...given);
};
run(parts.tests, parts.names.slice(0, parts.theirs));
if (parts.theirs < parts.names.length) run(parts.whole, parts.names);
process.on('exit', (code) => {
  if (code === 0 && failed) process.reallyExit(ASSERTION);
  if (code === 0) fs.writeSync(1, parts.sentinel);
});
"""
)
for _word, _code in (
    ("SYNTAX_ERROR", SYNTAX_ERROR_EXIT),
    ("ASSERTION", ASSERTION_EXIT),
    ("ANSWER_GONE", ANSWER_GONE_EXIT),
):
    _TESTS_RUNNER = _TESTS_RUNNER.replace(f"reallyExit({_word})", f"reallyExit({_code})")


def tests_runner(parts: str) -> str:
    """The program of the tests; parts: JSON with source, whole, tests, names, theirs and sentinel."""
    return _TESTS_RUNNER.replace("PARTS", parts, 1)


# Many programs in one Node, one after the other. Each has a realm (global object, built-ins) of its own, and there is one for
# all their tests. No realm gets an object of another: what crosses is text. The realm of an answer can make no code from text.
# The small assert says yes only where Node's would: to all it does not know it says no, and the program runs again alone.
COMPANY_RUNNER = (
    r"""
'use strict';
const fs = require('fs'), vm = require('vm');
const { programs, milliseconds } = JSON.parse(fs.readFileSync('programs.json', 'utf8'));
fs.unlinkSync('programs.json');  // before any program runs: none learns another's word
const write = fs.writeSync, { createContext, compileFunction, runInContext } = vm, folder = process.cwd();
const words = ['exports', 'require', 'module', '__filename', '__dirname'];
const answerRealm = new vm.Script(`(() => {
  'use strict';
  ${CODEC}
  ${ANSWERING}
  let noise = 0, serving = false, run;
  const count = () => { noise += 1; };
  const console = { log: count, error: count, warn: count, info: count, debug: count, table: count, dir: count };
  Object.defineProperty(console, 'assert', { value: (value) => { if (!value) noise += 1; }, writable: false });
  globalThis.console = console;
  const require = (name) => { throw new Error(name); };
  const exports = {}, task = { exports }, side = answering(() => { throw new Error('no way back'); });
  return {
    take: (program, folder) => {
      const serve = (functions) => { side.keep(functions); serving = true; };
      run = () => program.call(exports, exports, require, task, folder + '/task.js', folder, serve);
    },
    run: () => { try { run(); return serving; } catch { return false; } },
    kinds: side.kinds,
    ask: side.ask,
    silent: () => noise === 0,
  };
})()`);
const testsRealm = new vm.Script(`((ask) => {
  'use strict';
  const { isArray } = Array, { keys, getPrototypeOf } = Object, plain = getPrototypeOf({}), has = Object.hasOwn;
  let wrong = 0, ended = false;
  const count = () => { wrong += 1; };
  const check = (value) => { if (!value) wrong += 1; };
  const same = (a, b) => {
    if (a === b || (a !== a && b !== b)) return true;
    const objects = (typeof a === 'object' && a !== null) + (typeof b === 'object' && b !== null);
    if (objects === 0) return typeof a !== 'function' && typeof b !== 'function' && a == b;
    if (objects === 1 || isArray(a) !== isArray(b) || (isArray(a) && a.length !== b.length)) return false;
    if (!isArray(a) && (getPrototypeOf(a) !== plain || getPrototypeOf(b) !== plain)) return false;
    const names = keys(a);
    if (names.length !== keys(b).length) return false;
    for (let i = 0; i < names.length; i += 1) if (!has(b, names[i]) || !same(a[names[i]], b[names[i]])) return false;
    return true;
  };
  const assert = Object.freeze({
    deepEqual: (a, b) => check(same(a, b)), equal: (a, b) => check(a == b || (a !== a && b !== b)) });
  globalThis.console = { log: count, error: count, warn: count, info: count, debug: count, table: count, dir: count, assert: check };
  const require = (name) => { if (name === 'assert' || name === 'node:assert') return assert; throw new Error(name); };
  ${CODEC}
  ${ASKING}
  const exports = {}, task = { exports }, side = asking(ask);
  return {
    run: (program, folder, values) => {
      program.call(exports, exports, require, task, folder + '/task.js', folder, ...JSON.parse(values).map(side.unpack));
      ended = true;
    },
    passed: () => ended && wrong === 0,
  };
})`);
const outside = createContext(Object.create(null), { codeGeneration: { strings: false, wasm: false } });
const testing = testsRealm.runInContext(outside);
const text = (value) => { if (typeof value !== 'string') throw new Error('not text'); return value; };
function passes({ source, whole, tests, names, theirs, end }) {
  compileFunction(`${source}\n${whole}`, words);  // they must fit together
  const inside = createContext(Object.create(null), { codeGeneration: { strings: false, wasm: false } });
  const answer = answerRealm.runInContext(inside);
  const table = names.map((name, index) => `${index}: typeof ${name} === 'undefined' ? undefined : ${name}`).join(', ');
  answer.take(compileFunction(source + `\n;${end}({${table}});`, [...words, end, 'arguments'],
    { parsingContext: inside, filename: 'task.js' }), folder);
  const ours = testing((request) => text(answer.ask(text(request)))), all = names.map((_, index) => index);
  const rounds = [[tests, names.slice(0, theirs), all.slice(0, theirs)]];
  if (theirs < names.length) rounds.push([whole, names, all]);
  const programs = rounds.map(([program, given]) =>
    compileFunction(program, [...words, ...given], { parsingContext: outside, filename: 'tests.js' }));
  outside.run = () => {
    if (answer.run() !== true) throw new Error('not to its end');
    programs.forEach((program, number) => ours.run(program, folder, text(answer.kinds(rounds[number][2]))));
  };
  runInContext('{ const { run } = globalThis; delete globalThis.run; run(); }', outside, { timeout: milliseconds });
  return ours.passed() && answer.silent() === true;
}
for (const name of runInContext('Object.getOwnPropertyNames(globalThis)', createContext())) {
  const value = typeof globalThis[name] === 'function' ? globalThis[name] : null;
  if (value && value.prototype) { Object.freeze(value.prototype); Object.freeze(value); }
}
for (const value of [[].values(), ''[Symbol.iterator](), (function* () {})(), async () => {}, async function* () {}])
  for (let at = Object.getPrototypeOf(value); at; at = Object.getPrototypeOf(at)) Object.freeze(at);
for (const value of [Reflect, JSON, Math, vm, fs]) Object.freeze(value);
for (let number = 0; number < programs.length; number += 1) {
  let passed = false;
  try { passed = passes(programs[number]); } catch { passed = false; }
  if (passed === true) write(1, programs[number].word + '\n');
}
""".replace("${CODEC}", _CODEC.replace("\\", "\\\\").replace("`", "\\`").replace("${", "\\${"))
    .replace("${ANSWERING}", _ANSWERING.replace("\\", "\\\\").replace("`", "\\`").replace("${", "\\${"))
    .replace("${ASKING}", _ASKING.replace("\\", "\\\\").replace("`", "\\`").replace("${", "\\${"))
)
