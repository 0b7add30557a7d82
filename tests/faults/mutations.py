"""Mutated inputs: what is read from every kind of file, mutators that draw from one source of choices, and a run of many cases.

Each case is read in a forked process with limits of time and memory; it may be refused, be read as before, or be read as something
else. Anything else is a fault: another exception, a hang, memory, a file that was opened outside the folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from support.confined import limited_fork

SECONDS, BYTES = 5.0, 1 << 30
_BATCH = 250


@dataclass(frozen=True)
class Target:
    """A kind of input. file: which file of the workshop is mutated. form: how. read: reads it from the workshop's folder, and says
    what it was read as."""

    file: str
    form: str
    read: Callable[[Path], object]


def _config(root: Path) -> object:
    from qtk.quantization.model_weights import ModelWeights

    return ModelWeights.open(root / "m").spec


def _weights(folder: str) -> Callable[[Path], object]:
    def read(root: Path) -> object:
        import torch

        from qtk.quantization.model_weights import ModelWeights

        weights = ModelWeights.open(root / folder)
        block = weights.block(0, torch.float32)
        return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in sorted(block.items())}

    return read


def _adapter(root: Path) -> object:
    from contextlib import closing

    from qtk.adapters.adapter import open_adapter
    from qtk.adapters.layout import base_layout
    from qtk.adapters.plan import make_plan
    from qtk.checkpoint.reader import Checkpoint

    with closing(Checkpoint(root / "m")) as base:
        adapter = open_adapter(root / "a")
        plan = make_plan(base, base_layout(base), [adapter], [1.0], nf4=False)
        return [(tensor.name, tensor.changed, str(tensor.spec)) for tensor in plan.tensors]


def _tokenizer(root: Path) -> object:
    from qtk.models.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(root / "m")
    ids = tokenizer.encode("def f(x):\n    return x", special=True)
    return ids, tokenizer.decode(ids), tokenizer.eos_ids, tokenizer.bos_ids


def _template(root: Path) -> object:
    from qtk.models.tokenizer import TextTokenizer

    return TextTokenizer(root / "m").render([{"role": "user", "content": "hello"}])


def _recipe(root: Path) -> object:
    from qtk.recipes.reading import resolve_recipe

    return resolve_recipe(root / "recipe.yaml").recipe


def _suite(root: Path) -> object:
    from qtk.bench.accuracy.suites.suites import chosen_parts, suite_tasks

    parts = chosen_parts(str(root / "suite.yaml"))
    return [suite_tasks(part.suite, part.name, root) for part in parts]


def _answers(root: Path) -> object:
    from qtk.bench.accuracy.programs.answers import read_answers

    return read_answers(root / "answers.jsonl")


def _profile(root: Path) -> object:
    from qtk.targets.gpu import gpu_profile

    return gpu_profile(str(root / "profile.yaml"))


def _calibration(name: str, chat_format: str) -> Callable[[Path], object]:
    def read(root: Path) -> object:
        from qtk.calibration.options import CalibrationOptions
        from qtk.calibration.rows import calibration_rows
        from qtk.models.tokenizer import TextTokenizer

        options = CalibrationOptions(calibration=str(root / name), samples=4, chat_format=chat_format)  # type: ignore[arg-type]
        return calibration_rows(TextTokenizer(root / "m"), options, 16).tokens.tolist()

    return read


def _training_rows(root: Path) -> object:
    from qtk.finetuning.rows import read_tasks

    return read_tasks((str(root / "chats.jsonl"),))


def _manifest(root: Path) -> object:
    from qtk.checkpoint.manifest import verify_chain

    return [(finding.file, finding.status) for finding in verify_chain(root / "e")]


def _description(root: Path) -> object:
    from qtk.engines.description import read_description

    manifest, aside = root / "e" / "qtk-manifest.json", root / "manifest-aside"
    manifest.rename(aside)  # else a changed description is refused unread
    try:
        return read_description(root / "e")
    finally:
        aside.rename(manifest)


def _gguf(root: Path) -> object:
    return _weights("q-gguf")(root)


TARGETS: dict[str, Target] = {
    "safetensors header": Target("m/model.safetensors", "safetensors", _weights("m")),
    "safetensors bytes": Target("m/model.safetensors", "bytes", _weights("m")),
    "index": Target("sharded/model.safetensors.index.json", "json", _weights("sharded")),
    "config": Target("m/config.json", "json", _config),
    "generation config": Target("m/generation_config.json", "json", _tokenizer),
    "adapter config": Target("a/adapter_config.json", "json", _adapter),
    "adapter tensors": Target("a/adapter_model.safetensors", "safetensors", _adapter),
    "tokenizer": Target("m/tokenizer.json", "json", _tokenizer),
    "tokenizer config": Target("m/tokenizer_config.json", "json", _tokenizer),
    "chat template": Target("m/chat_template.jinja", "text", _template),
    "recipe": Target("recipe.yaml", "yaml", _recipe),
    "suite": Target("suite.yaml", "yaml", _suite),
    "tasks": Target("own.jsonl", "jsonl", _suite),
    "answers": Target("answers.jsonl", "jsonl", _answers),
    "profile": Target("profile.yaml", "yaml", _profile),
    "calibration text": Target("text.txt", "bytes", _calibration("text.txt", "none")),
    "calibration rows": Target("chats.jsonl", "jsonl", _calibration("chats.jsonl", "codefuse")),
    "training rows": Target("chats.jsonl", "jsonl", _training_rows),
    "manifest": Target("e/qtk-manifest.json", "json", _manifest),
    "engine.json": Target("e/engine.json", "json", _description),
    **{
        f"{name} config": Target(f"q-{name}/config.json", "json", _weights(f"q-{name}"))
        for name in ("gptq", "awq", "compressed-tensors", "modelopt")
    },
    **{
        f"{name} tensors": Target(f"q-{name}/model.safetensors", "safetensors", _weights(f"q-{name}"))
        for name in ("gptq", "awq", "compressed-tensors", "modelopt")
    },
    "gguf": Target("q-gguf/model.gguf", "bytes", _gguf),
}

_WORDS = [
    "", "..", "../../etc/passwd", "/etc/passwd", "/dev/zero", "none", "auto", "a" * 5000, "\0",
    "é\u2028\U0001f600", "(a+)+$", "{{ 'A' * 10**9 }}",
          "${x}", "-1", "1e999", "BF16", "I16", "re:.*", "\ud800",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 2**31, 2**63, 2**64, 2**70, 10**18, 0.5,
     -0.0, 1e308, 1e-308, float("inf"),
                      float("nan"), [], {}, [[]], [None], {"": None}, [1] * 1000, *_WORDS,
]  # fmt: skip
_BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\0" * 64,
    b"\xff" * 64,
    b"{",
    b"}",
    b"[" * 3000,
    b'"',
    b"\xc3",
    b"\n",
    b"9" * 5000,
    b"1e999",
    b"\x1b[31m",
    b"NaN",
]


def mutate(target: Target, content: bytes, chooser: random.Random) -> bytes:
    """One to three mutations of a file of the target's form."""
    for _ in range(chooser.choice([1, 1, 1, 2, 3])):
        content = _FORMS[target.form](content, chooser)
    return content


def _bytes(content: bytes, chooser: random.Random) -> bytes:
    at = chooser.randrange(len(content) + 1)
    end = min(len(content), at + chooser.choice([1, 1, 2, 8, 64, 1000]))
    kind = chooser.randrange(6)
    if kind == 0 and content:
        at = min(at, len(content) - 1)
        return content[:at] + bytes([content[at] ^ (1 << chooser.randrange(8))]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + content[end:]
    if kind == 2:
        return content[:at] + content[at:end] * chooser.choice([2, 3, 100]) + content[end:]
    if kind == 3:
        return content[:at]
    if kind == 4:
        return content[:at] + chooser.choice(_BYTES) + content[end:]
    other = chooser.randrange(len(content) + 1)
    return content[:at] + content[other : other + 64] + content[at:]


def _places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above] if above else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries)[:400]:
        found += _places(inner, (*above, key))
    return found


def _tree(value: Any, chooser: random.Random) -> Any:
    value = copy.deepcopy(value)
    places = _places(value)
    if not places:
        return chooser.choice(_VALUES)
    place = chooser.choice(places)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    key, kind = place[-1], chooser.randrange(7)
    old = holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chooser.choice([*_WORDS, f"{key}x", *map(str, list(holder)[:20])])] = holder.pop(key)
    elif kind == 2 and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = chooser.choice([old + 1, old - 1, -old, old * 2, old * 10**9, float(old), str(old), old / 3])
    elif kind == 3:
        holder[key] = [old] if chooser.random() < 0.5 else {"x": old}
    elif kind == 4:
        deep: Any = old
        for _ in range(chooser.choice([3, 70, 900])):
            deep = [deep]
        holder[key] = deep
    elif kind == 5:
        holder[key] = copy.deepcopy(
            holder[chooser.choice(list(holder))] if isinstance(holder, dict) else chooser.choice(holder)
        )
    else:
        holder[key] = chooser.choice(_VALUES)
    return value


def _json(content: bytes, chooser: random.Random) -> bytes:
    if chooser.random() < 0.2:
        return _bytes(content, chooser)
    try:
        return json.dumps(_tree(json.loads(content), chooser)).encode()
    except (ValueError, RecursionError):
        return _bytes(content, chooser)


def _jsonl(content: bytes, chooser: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = chooser.randrange(len(lines))
    lines[number] = _json(lines[number], chooser)
    return b"\n".join(lines)


def _yaml(content: bytes, chooser: random.Random) -> bytes:
    if chooser.random() < 0.4:
        return _bytes(content, chooser)
    try:
        return yaml.safe_dump(_tree(yaml.safe_load(content), chooser), allow_unicode=True).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError, yaml.YAMLError):
        return _bytes(content, chooser)


def _safetensors(content: bytes, chooser: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if chooser.random() < 0.1 or length > len(content):
        return _bytes(content, chooser)
    header = _json(content[8 : 8 + length], chooser)
    stated = len(header) if chooser.random() < 0.9 else chooser.choice([0, 1, len(header) + 1, 2**31, 2**63])
    return stated.to_bytes(8, "little") + header + content[8 + length :]


_FORMS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": _bytes,
    "text": _bytes,
    "json": _json,
    "jsonl": _jsonl,
    "yaml": _yaml,
    "safetensors": _safetensors,
}


@dataclass
class Tally:
    """What came out: how many cases were refused, read as the whole file, or read as something else; and the faults."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds of processor time
    most: int = 0  # bytes that a process held at its peak, what it had imported included

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        self.faults += other.faults
        self.slowest = max(self.slowest, other.slowest)
        self.most = max(self.most, other.most)

    def take(self, name: str, log: Path) -> int:
        """Counts the cases that a log tells of, and returns their number."""
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        for row in rows:
            self.counts[row["outcome"]] += 1
            self.slowest = max(self.slowest, row["seconds"])
            if row["outcome"] == "fault":
                self.faults.append(f"{name}, case {row['case']}: {row['said']}")
        return len(rows)

    def measured(self) -> str:
        return f"slowest {self.slowest:.2f} s, {self.most >> 20} MB"


def answer_of(target: Target, root: Path) -> tuple[str, str]:
    """("read", what it was read as), ("refused", why), or ("fault", traceback)."""
    from qtk.errors import InputError, MachineError

    try:
        return "read", repr(target.read(root))
    except (InputError, MachineError) as error:
        return "refused", str(error)
    except MemoryError:
        return "fault", f"MemoryError\n{traceback.format_exc()[-1500:]}"
    except Exception:
        return "fault", traceback.format_exc()[-2500:]


@dataclass(frozen=True)
class Judge:
    """What becomes of one mutated file after the other, a line of a log each. Made in the process that reads them."""

    target: Target
    root: Path
    expected: str
    log: Path

    def watching(self) -> Callable[[bytes, object], None]:
        """Returns what takes a case: its content, and how it is called."""
        # Standard streams may be anywhere: what a command would say of a case is not looked at here.
        quiet = os.open(os.devnull, os.O_RDWR)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        outside = _watch_files(self.root)
        rows = self.log.open("w")

        def judge(content: bytes, name: object) -> None:
            (self.root / self.target.file).write_bytes(content)
            signal.setitimer(signal.ITIMER_REAL, SECONDS * 2)  # of wall clock: the machine has other work too
            outside.clear()  # of what drew this case
            began = time.process_time()
            outcome, said = answer_of(self.target, self.root)
            took = time.process_time() - began
            signal.setitimer(signal.ITIMER_REAL, 0)
            if outside:
                outcome, said = "fault", f"opened outside its folder: {outside}"
            if took > SECONDS:
                outcome, said = "fault", f"took {took:.1f} s of processor time"
            if outcome == "read":
                outcome = "read as the whole file" if said == self.expected else "read as something else"
            row = {"case": name, "outcome": outcome, "seconds": took, "said": said if outcome == "fault" else ""}
            rows.write(json.dumps(row) + "\n")
            rows.flush()

        return judge


def judge_of(name: str, root: Path) -> Judge:
    target = TARGETS[name]
    expected = answer_of(target, root)
    assert expected[0] == "read", expected
    return Judge(target, root, expected[1], root / "cases.log")


def judged_fork(judge: Judge, work: Callable[[], int], seconds: float, more_bytes: int = BYTES) -> tuple[int, int]:
    """Reads cases in a process of their own. Returns its exit code and the bytes that it held at its peak."""
    judge.log.unlink(missing_ok=True)
    code, _, peak = limited_fork(work, seconds=seconds, more_bytes=more_bytes)
    return code, peak


def run_cases(name: str, root: Path, seed: int, first: int, count: int) -> Tally:
    """Reads mutations `first` to `first + count` - 1 of a seed, in forked processes. A case that ends its process is a fault, and the
    next process goes on behind it."""
    judge, tally = judge_of(name, root), Tally()
    whole = (root / judge.target.file).read_bytes()
    number, end = first, first + count
    while number < end:
        cases = range(number, min(end, number + _BATCH))

        def work(cases: range = cases) -> int:
            take = judge.watching()
            for number in cases:
                take(case(name, whole, seed, number), number)
            return 0

        code, peak = judged_fork(judge, work, SECONDS * _BATCH)
        tally.most = max(tally.most, peak)
        number += tally.take(f"{name}, seed {seed}", judge.log)
        if code:
            tally.counts["fault"] += 1
            tally.faults.append(f"{name}, seed {seed}, case {number}: {how_it_ended(code)}")
            number += 1
    (root / judge.target.file).write_bytes(whole)
    return tally


def how_it_ended(code: int) -> str:
    return f"took more than {SECONDS:g} s" if code == 128 + signal.SIGALRM else f"ended its process ({code})"


def case(name: str, whole: bytes, seed: int, number: int) -> bytes:
    """The mutation of a number."""
    return mutate(TARGETS[name], whole, random.Random(f"{seed} {name} {number}"))


def _watch_files(root: Path) -> list[str]:
    """Notes the files outside `root` that are opened to be written, and those of the system that a name in a file may lead to."""
    found: list[str] = []
    own = str(root.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path = os.path.realpath(os.fsdecode(arguments[0])) if "\0" not in os.fsdecode(arguments[0]) else ""
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        hostile = path in ("/etc/passwd", "/dev/zero")
        if path and (hostile or (writes and not path.startswith((own, "/dev/", "/proc/")))):
            found.append(path)

    sys.addaudithook(hook)
    return found
