"""`qtk inspect` and `qtk verify`: what they say of a directory is what its files hold."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from qtk.bench.options import DivergenceOptions, LatencyOptions
from qtk.bench.results import measure_into
from qtk.checkpoint.manifest import MANIFEST_NAME, file_digest, read_manifest
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.quantization.scheme_model import LinearScheme
from qtk.release.chain import source_names
from qtk.release.inspection import inspect_directory

GROUP_32 = {"bits": 4, "group_size": 32, "symmetric": True}


@pytest.mark.parametrize(
    ("variant", "overrides", "counted", "in_float"),
    [
        ("llama", {}, [{"count": 21, **GROUP_32}], 1),
        (
            "llama",
            {"lm_head": LinearScheme(8, 32, True)},
            [{"count": 21, **GROUP_32}, {"count": 1, **GROUP_32, "bits": 8}],
            0,
        ),
        ("llama-tied", {}, [{"count": 21, **GROUP_32}], 0),
    ],
    ids=["float head", "quantized head", "tied head"],
)
def test_every_linear_is_counted_with_the_head(
    tiny, tmp_path, variant: str, overrides: dict, counted: list, in_float: int, write_quantized
) -> None:
    out = write_quantized(tiny(variant), tmp_path / "out", "gptq", LinearScheme(4, 32, True), overrides)
    found = inspect_directory(out).facts["quantization"]
    assert found == {"container": "gptq", "linears": counted, "in_float": in_float}


def test_a_float_model_is_not_quantized(tiny, run_qtk) -> None:
    assert inspect_directory(tiny()).facts["quantization"] is None
    shown = run_qtk("inspect", tiny()).stdout
    assert "query 4, key value 2, size 32" in shown
    assert "peak_memory_bytes" not in shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 1}, "num_hidden_layers: config.json says 1, the tensors 3"),
        ({"vocab_size": 7}, "vocab_size: config.json says 7, the tensors 320"),
        ({"hidden_size": 96, "head_dim": 32}, "hidden_size: config.json says 96, the tensors 128"),
        ({"intermediate_size": 100}, "intermediate_size: config.json says 100, the tensors 256"),
        ({"num_key_value_heads": 1}, "num_key_value_heads x head_dim: config.json says 32, the tensors 64"),
        (
            {"num_attention_heads": 8, "head_dim": 32},
            "num_attention_heads x head_dim: config.json says 256, the tensors 128",
        ),
    ],
)
@pytest.mark.parametrize("container", ["", "gptq", "compressed-tensors"])
def test_a_figure_that_the_tensors_contradict_is_named(
    tiny, tmp_path, run_qtk, write_quantized, container: str, change: dict, said: str
) -> None:
    model = tmp_path / "model"
    if container:
        write_quantized(tiny(), model, container, LinearScheme(4, 32, True), {})
    else:
        shutil.copytree(tiny(), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **change}))
    done = run_qtk("inspect", model, "--json")
    assert json.loads(done.stdout)["facts"]["contradictions"] == [said], done.stderr
    shown = " ".join(run_qtk("inspect", model).stdout.replace("│", " ").split())
    assert said in shown


def test_an_absent_head_and_absent_blocks_are_named(tiny, tmp_path) -> None:
    model = shutil.copytree(tiny(), tmp_path / "model")
    kept = {
        name: tensor
        for name, tensor in load_file(model / "model.safetensors").items()
        if name != "lm_head.weight" and not name.startswith("model.layers.1.")
    }
    save_file(kept, model / "model.safetensors")
    assert inspect_directory(model).facts["contradictions"] == [
        "num_hidden_layers: of block 1 no tensor is stored, though of later ones",
        "tie_word_embeddings: config.json says false, and no lm_head is stored",
    ]


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("container", ["", "gptq", "awq", "compressed-tensors", "modelopt"])
def test_nothing_is_contradicted_where_config_and_tensors_agree(
    tiny, tmp_path, write_quantized, container: str, variant: str
) -> None:
    model = tiny(variant)
    if container:
        model = write_quantized(model, tmp_path / "model", container, LinearScheme(4, 64, True), {})
    assert "contradictions" not in inspect_directory(model).facts


class _Figures(BaseModel):
    """A result as it lies in result.json."""

    model_config = ConfigDict(extra="allow")


_ESTIMATE = {"mean": 0.0729, "standard_error": 0.0012}
_TEXT = {"text": "all", "tokens": 8192, "kl": _ESTIMATE, "top1_agreement": _ESTIMATE, "perplexity": 9.1}
_SHAPE = {"input_len": 16, "output_len": 8, "tokens_per_s": 53.25, "standard_error": 0.5, "decode_tokens_per_s": 60.0}
_TIMES = {"mean": 33.2, "p50": 33.2, "p90": 34.0, "p99": 35.0}
_ENGINE = {"backend": "onnxruntime", "gpu": "cpu", "dtype": "float32", "accuracy_level": 4, "lm_head_bits": 8}
_CALLS = {"batch_size": 1, "ttft_ms": _TIMES, "inter_token_ms": _TIMES, "call_seconds": [0.15] * 66, "runs": 66}
LATENCY = _Figures(
    processor="a processor",
    engines=[{**_ENGINE, "engine": "my engine", "first_call_ms": 40.0, "shapes": [{**_SHAPE, **_CALLS}]}],
)
DIVERGENCE = _Figures(texts=[], pooled={**_TEXT, "perplexity_reference": 8.9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny) -> Path:
    """A folder of three outputs: an engine, its latency, its divergence. The figures are made up, the chain is not."""
    root = tmp_path_factory.mktemp("folder")
    build_engine(tiny(), root / "my engine", BuildOptions(max_input_len=32, max_output_len=8))
    engine = {"engine": root / "my engine"}
    measure_into(root / "latency", "latency", LatencyOptions(), engine, lambda: LATENCY)
    inputs = {"model": root / "my engine", "reference": tiny()}
    measure_into(root / "divergence", "divergence", DivergenceOptions(), inputs, lambda: DIVERGENCE)
    return root


def test_a_result_s_figures_are_shown(folder, run_qtk) -> None:
    found = inspect_directory(folder / "latency")
    assert (found.kind, found.facts["result"]) == ("result", "latency")
    (table,) = found.facts["figures"]
    assert dict(zip(table["columns"], table["rows"][0], strict=True))["tokens/s"] == 53.25
    assert "53.25" in run_qtk("inspect", folder / "latency").stdout
    assert "perplexity" in run_qtk("inspect", folder / "divergence").stdout


def test_a_folder_of_outputs_is_inspected_and_verified_as_one(folder, run_qtk) -> None:
    inspected = json.loads(run_qtk("inspect", folder, "--json").stdout)
    assert inspected["kind"] == "folder"
    assert [entry["directory"] for entry in inspected["facts"]["contains"]] == ["divergence", "latency", "my engine"]
    verified = run_qtk("verify", folder)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.splitlines()[-1].startswith("Verified: ")
    found = json.loads(run_qtk("verify", folder, "--json").stdout)
    assert found["verdict"].startswith("Verified: ")
    assert {Path(finding["directory"]).name for finding in found["findings"]} >= {"latency", "my engine", "divergence"}


def test_a_file_in_an_output_stands_for_it(folder, run_qtk) -> None:
    assert "Verified" in run_qtk("verify", folder / "latency" / "result.json").stdout


def test_the_verdict_counts_what_changed_and_what_is_elsewhere(folder, tmp_path, run_qtk) -> None:
    copy = tmp_path / "latency"
    shutil.copytree(folder / "latency", copy)
    alone = run_qtk("verify", copy)
    assert alone.returncode == 0
    assert alone.stdout.splitlines()[-1] == "Verified: 1 file, 1 input is not on this machine."
    (copy / "result.json").write_text("{}")
    (copy / "more.txt").write_text("")
    changed = run_qtk("verify", copy, "--json")
    assert changed.returncode == 3
    assert json.loads(changed.stdout)["verdict"] == (
        "CHANGED: 1 file changed, 1 file not recorded; 0 as recorded, 1 input is not on this machine"
    )


def test_what_is_not_there_or_not_ours_is_said(tmp_path, run_qtk) -> None:
    for command in ("verify", "inspect", "report"):
        done = run_qtk(command, tmp_path / "nope")
        assert done.returncode == 2
        assert "does not exist" in done.stderr
    assert "has no qtk-manifest.json, and no directory in it has" in run_qtk("verify", tmp_path).stderr


def test_sources_are_named_by_digest(folder, tmp_path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(folder, root)
    manifest = read_manifest(root / "latency")
    known = {file_digest(root / "my engine" / MANIFEST_NAME).sha256: "my engine"}
    assert source_names(root / "latency", manifest, known) == ["my engine"]
    assert source_names(root / "latency", manifest, {}) == ["../my engine"]
    path = root / "my engine" / MANIFEST_NAME
    path.write_text(path.read_text() + " ")
    assert "another directory lies there now" in source_names(root / "latency", manifest, {})[0]
    path.unlink()
    assert source_names(root / "latency", manifest, {}) == ["../my engine (not on this machine)"]


def test_each_output_ends_with_the_command_that_comes_next(folder, run_qtk) -> None:
    def words(name: str) -> list[str]:
        (line,) = [line for line in run_qtk("inspect", folder / name).stdout.splitlines() if line.startswith("Next: ")]
        return shlex.split(line.removeprefix("Next: "))

    engine, latency, divergence = words("my engine"), words("latency"), words("divergence")
    assert engine == ["qtk", "bench", "latency", str(folder / "my engine"), "-o", str(folder / "my engine-latency")]
    assert latency[:3] == ["qtk", "bench", "divergence"]
    assert divergence[:3] == ["qtk", "report", str(folder)]
    assert "Next" not in run_qtk("inspect", folder / "latency", "--json").stdout


def test_what_comes_after_a_quantization_depends_on_its_target(tiny, tmp_path, run_qtk) -> None:
    for number, (options, expected) in enumerate(
        [
            ((), "qtk build-engine {out} -o {folder}/engine --gpu cpu"),
            (("--gpu", "a10"), "qtk build-engine {out} -o {folder}/engine --gpu a10"),
            (("--backend", "tensorrt-llm", "--group-size", "64"), "--backend tensorrt-llm"),
            (("--backend", "vllm"), "qtk bench divergence"),
        ]
    ):
        out = tmp_path / f"int4-{number}"
        done = run_qtk("quantize", tiny(), "-o", out, "--method", "rtn", *options)
        assert done.returncode == 0, done.stderr
        assert expected.format(out=out, folder=tmp_path) in done.stdout.splitlines()[-1]
