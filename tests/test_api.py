"""`import qtk`: every public name is there, lazy, typed and documented, and the page's examples run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.peft_adapters import make_adapter

import qtk

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
HEAVY = ("torch", "onnxruntime", "transformers", "onnx", "tokenizers", "matplotlib")
# The same calls on a tiny model, with less to do.
LESS = {
    r"samples=\d+": "samples=16",
    r"rows=\d+, seq_len=\d+": "rows=2, seq_len=64",
    r'shapes="[^"]+", seconds=\d+': 'shapes="4/2", runs=1, seconds=0',
    r"limit=\d+": "limit=1",
    r"max_new_tokens=\d+": "max_new_tokens=4",
}


def names_for_type_checkers() -> set[str]:
    tree = ast.parse((ROOT / "qtk" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_type_checkers_see_the_names_that_exist() -> None:
    public = set(qtk.__all__) - {"__version__"}
    assert names_for_type_checkers() == public
    assert public <= set(dir(qtk))
    for name in public:
        assert getattr(qtk, name) is not None
    assert (ROOT / "qtk" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = qtk.no_such_name  # type: ignore[attr-defined]


def test_every_public_name_is_on_the_page() -> None:
    absent = [name for name in qtk.__all__ if name != "__version__" and f"qtk.{name}" not in PAGE]
    assert absent == []


def test_importing_qtk_and_making_options_loads_nothing_heavy() -> None:
    code = [
        "import sys, qtk",
        "assert 'pydantic' not in sys.modules",
        "qtk.merge, qtk.quantize, qtk.plan, qtk.build_engine, qtk.open_engine, qtk.run, qtk.verify",
        "qtk.bench.latency, qtk.bench.divergence, qtk.bench.accuracy, qtk.bench.compare",
        "qtk.QuantizeOptions(), qtk.MergeOptions(), qtk.AccuracyOptions(), qtk.errors.InputError",
        f"print(*(name for name in {HEAVY} if name in sys.modules))",
    ]
    result = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_the_functions_of_bench_stay_functions_when_their_rooms_are_loaded() -> None:
    import qtk.bench.accuracy.results.comparison
    import qtk.bench.divergence_run
    import qtk.bench.latency_run

    for name in ("latency", "divergence", "accuracy", "compare"):
        assert callable(getattr(qtk.bench, name))


@pytest.fixture
def workplace(tiny, tmp_path, monkeypatch) -> Path:
    """A directory with `base` and `adapter`, and the working directory of the test."""
    (tmp_path / "base").symlink_to(tiny("llama"))
    make_adapter(tiny("llama"), tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_the_page_run(workplace, capsys) -> None:
    from qtk.progress import silence_progress

    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S))
    for pattern, replacement in LESS.items():
        code, count = re.subn(pattern, replacement, code)
        assert count, pattern
    try:
        exec(compile(code, "docs/python.md", "exec"), {})
    finally:
        silence_progress(False)
    printed = capsys.readouterr().out
    assert "bytes of weights became" in printed
    assert "± " in printed
    for name in ("merged", "int4", "engine", "latency", "divergence", "scores-int4"):
        assert (workplace / name / "qtk-manifest.json").is_file(), name
