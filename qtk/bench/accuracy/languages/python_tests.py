"""How a task's Python tests are taken apart from the answer: what they may use by themselves, and what they use of the answer."""

from __future__ import annotations

import ast
import builtins
import functools

from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import Apart

# Tests with these look at the program's own objects, or want theirs to be looked at: they run in one process with it.
_TOGETHER = (ast.ClassDef, ast.AsyncFunctionDef, ast.Await)
_TOGETHER_NAMES = {"globals", "locals", "inspect", "unittest", "__import__", "importlib", "exec", "eval"}


@functools.lru_cache(maxsize=4)  # a task is asked for with its reference, and then with each answer
def tests_apart(task: Task) -> Apart | None:
    """The tests of a task for a process of their own; None where they have to be in one process with the answer.

    That process has the suite's header and the imports and helpers of the prompt, as the tests are written against them. The
    function that was asked for, and every other name that is defined in neither, is the answer's.
    """
    try:
        tree = ast.parse(task.tests)
    except (SyntaxError, ValueError, RecursionError):
        return None
    if any(isinstance(node, _TOGETHER) for node in ast.walk(tree)) or _TOGETHER_NAMES & _loaded(tree):
        return None
    helpers = _prompt_without(task)
    own = _defined(helpers)
    free = _loaded(tree) - _assigned(tree) - own - set(dir(builtins)) | {task.entry} & _loaded(tree)
    before = f"{task.header}\n{ast.unparse(helpers)}\n"
    return Apart(before, task.tests, tuple(sorted(free)), tuple(sorted(own & _loaded(tree))))


def _prompt_without(task: Task) -> ast.Module:
    """What the prompt has beside the function that was asked for."""
    for text in (task.prompt, f"{task.prompt}    pass\n"):
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError):
            continue
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
        kept = [node for node in body if isinstance(node, kinds) and getattr(node, "name", "") != task.entry]
        return ast.Module(kept, [])
    return ast.Module([], [])


def _defined(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _loaded(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _assigned(tree: ast.AST) -> set[str]:
    """Names that the tests bind at their own top level; a function's own names stay the function's."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef):
            found |= {node.name, *(argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg))}
        elif isinstance(node, ast.Lambda):
            found |= {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found
