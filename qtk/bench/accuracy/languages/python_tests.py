"""How a task's Python tests are taken apart from the answer: what they may use by themselves, and what they use of the answer."""

from __future__ import annotations

import ast
import builtins
import functools
import types
from dataclasses import dataclass

from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import Apart, compiled_tests, packed_code

# Tests with these look at the program's own objects, or want theirs to be looked at: they run in one process with it.
_TOGETHER = (ast.ClassDef, ast.AsyncFunctionDef, ast.Await)
_TOGETHER_NAMES = {"globals", "locals", "inspect", "unittest", "__import__", "importlib", "exec", "eval"}


@functools.lru_cache(maxsize=4096)  # a task is asked for with its reference, and then with each answer
def tests_apart(task: Task) -> Apart | None:
    """The tests of a task for a process of their own; None where they have to be in one process with the answer.

    Of the answer they have the function that was asked for, and every other name that neither the tests nor the prompt nor
    the suite's header defines. The helpers in the prompt are the prompt's, whatever the answer makes of them.
    """
    try:
        code = compiled_tests(task.tests)
        compiled = packed_code(code)
        if not _words(code) - _BUILTINS - _USUAL - {task.entry}:
            return Apart(
                "", task.tests, compiled, (task.entry,)
            )  # as nearly all are, and much faster than the whole way
        tree = ast.parse(task.tests)
    except (SyntaxError, ValueError, RecursionError):
        return None
    names = _Names.of(tree)
    if names.together or _TOGETHER_NAMES & names.loaded:
        return None
    entry = {task.entry} & names.loaded
    free = names.loaded - names.bound - _BUILTINS - entry
    if not free:
        return Apart("", task.tests, compiled, tuple(entry))
    helpers = _prompt_without(task)
    own = {node.name for node in helpers.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} & free
    before = f"{task.header}\n{ast.unparse(helpers)}\n"
    return Apart(before, task.tests, compiled, (*entry, *sorted(free - own)), tuple(sorted(own)))


_BUILTINS = frozenset(dir(builtins)) - _TOGETHER_NAMES
_USUAL = {"METADATA", "check"}  # what the tests of HumanEval define


def _words(code: types.CodeType) -> set[str]:
    """Every name in a program but those of local variables: globals, attributes, imports."""
    inside = (item for item in code.co_consts if isinstance(item, types.CodeType))
    return {*code.co_names, *(word for item in inside for word in _words(item))}


@dataclass(frozen=True)
class _Names:
    """The names that tests read and those that they bind, and whether they hold what cannot be taken apart."""

    loaded: frozenset[str]
    bound: frozenset[str]
    together: bool

    @staticmethod
    def of(tree: ast.AST) -> _Names:
        loaded: set[str] = set()
        bound: set[str] = set()
        together = False
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.FunctionDef):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
            together = together or isinstance(node, _TOGETHER)
        return _Names(frozenset(loaded), frozenset(bound), together)


def _prompt_without(task: Task) -> ast.Module:
    """What the prompt has beside the function that was asked for."""
    for text in (task.prompt, f"{task.prompt}    pass\n"):
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError):
            continue
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
        kept: list[ast.stmt] = [
            node for node in body if isinstance(node, kinds) and getattr(node, "name", "") != task.entry
        ]
        return ast.Module(kept, [])
    return ast.Module([], [])
