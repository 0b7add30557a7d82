"""No command loads torch and its like before its work starts, and the commands that only read files never do."""

from __future__ import annotations

import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qtk.cli
from qtk.calibration.options import CalibrationOptions
from qtk.cli.bench import SUBCOMMANDS
from qtk.cli.main import COMMANDS
from qtk.cli.recipe import SUBCOMMANDS as RECIPE_SUBCOMMANDS
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model

HEAVY = ("torch", "onnxruntime", "matplotlib", "transformers", "onnx", "tokenizers", "datasets", "lm_eval")


def heavy_after(*statements: str) -> list[str]:
    """The heavy packages that a fresh Python has loaded after these statements; an error of theirs fails the test."""
    code = [
        "import sys, io, contextlib, importlib",
        "from qtk.cli.main import main",
        *statements,
        f"print('LOADED', *(name for name in {HEAVY} if name in sys.modules))",
    ]
    result = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


def runs_light(words: list[str], code: int) -> str:
    """A statement that runs a command and names it where it loads something heavy. Many can follow each other in one process,
    which saves a start of Python for each: what one loads stays loaded, so none can hide it."""
    return f"assert main({words}) == {code} and not {{*{HEAVY}}} & {{*sys.modules}}, {words}"


# Read from the tables of names: importing the commands here would load what they load.
LINES = ["", *COMMANDS, *(f"bench {name}" for name in SUBCOMMANDS), *(f"recipe {name}" for name in RECIPE_SUBCOMMANDS)]


def test_help_and_a_usage_error_load_nothing_heavy() -> None:
    tried = [
        runs_light([*words, option], code)
        for words in map(str.split, LINES)
        for option, code in (("--help", 0), ("--no-such", 2))
    ]
    assert heavy_after(*tried) == []


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    names = [f"qtk.cli.{module.name}" for module in pkgutil.iter_modules(qtk.cli.__path__)]
    assert heavy_after(*(f"import {name}" for name in names)) == []


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, tiny) -> Path:
    """Directories to look at: model, int4, awq, a tied model with a stored head, engine, adapter, and two results of `bench accuracy`."""
    root = tmp_path_factory.mktemp("outputs")
    (root / "model").symlink_to(tiny("llama"))
    options = QuantizeOptions(method="rtn", group_size=32)
    quantize_model(root / "model", root / "int4", options, CalibrationOptions())
    awq = options.model_copy(update={"container": "awq"})
    quantize_model(root / "model", root / "awq", awq, CalibrationOptions())
    shutil.copytree(tiny("llama-tied"), root / "tied")
    tensors = load_file(root / "tied" / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, root / "tied" / "model.safetensors"
    )
    (root / "run").mkdir()
    build_engine(root / "int4", root / "run" / "engine", BuildOptions(max_input_len=32, max_output_len=8))
    (root / "gates.yaml").write_text("gates: [{metric: size, at_most: 1}]")
    build_engine(root / "int4", root / "engine", BuildOptions(max_input_len=32, max_output_len=8))
    (root / "adapter").mkdir()
    names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"]
    save_file(
        dict(zip(names, (torch.ones(4, 128), torch.ones(128, 4)), strict=True)),
        root / "adapter" / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "m",
    }
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    for name, passed in (("before", 90), ("after", 80)):
        (root / name).mkdir()
        (root / name / "result.json").write_text(json.dumps(accuracy_result(passed)))
    return root


def accuracy_result(passed: int) -> dict[str, object]:
    """A result of HumanEval as qtk 0.1 wrote it."""
    tasks = {f"HumanEval/{number}": ["passed" if number < passed else "failed"] for number in range(164)}
    score = {
        "suite": "humaneval",
        "language": "python",
        "file": "HumanEval.jsonl.gz",
        "file_sha256": "0" * 64,
        "pass_at": [{"k": 1, "value": passed / 164, "standard_error": 0.04}],
        "verdicts": {"passed": passed, "failed": 164 - passed},
        "tasks": tasks,
    }
    return {
        "kind": "qtk-accuracy",
        "qtk_version": "0.1.0",
        "model": "engine",
        "answers": None,
        "rules": "qtk",
        "prompt_format": "plain",
        "decoding": {},
        "sandbox": {"level": "namespaces"},
        "scores": [score],
        "seconds": 1.0,
        "machine": {},
    }


READING = """
        gpus
        gpus --json
        verify {root}/int4
        verify {root}/engine --json
        inspect {root}/model
        inspect {root}/int4
        inspect {root}/awq
        inspect {root}/tied
        inspect {root}/adapter
        inspect {root}/engine --json
        recipe show smollm2-135m --set quantize.samples=4 --json
        recipe schema
        bench compare {root}/before {root}/after
        bench leaderboard {root}/before
        gate {root}/run --gates {root}/gates.yaml
"""


def test_commands_that_read_files_load_nothing_heavy(outputs: Path) -> None:
    lines = [line.split() for line in READING.strip().format(root=outputs).splitlines()]
    assert heavy_after(*(runs_light(words, 0) for words in lines)) == []


def test_bundling_and_publishing_load_nothing_heavy(outputs: Path) -> None:
    lines = (
        ["bundle", f"{outputs}/run", "-o", f"{outputs}/bundle"],
        ["verify", f"{outputs}/bundle"],
        ["publish", f"{outputs}/bundle", f"file://{outputs}/share", "--despite-gate"],
    )
    assert heavy_after(*(f"assert main({words}) == 0" for words in lines)) == []
