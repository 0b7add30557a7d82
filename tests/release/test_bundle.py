"""Bundles: what is in them, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from support.pages import parses

from qtk.checkpoint.copying import share_file
from qtk.checkpoint.manifest import read_manifest
from qtk.checkpoint.sums import read_sums, sums_text
from qtk.engines.description import read_description
from qtk.errors import GateFailed
from qtk.release.sbom import Ingredient, Materials, sbom_json
from qtk.release.starting import STARTERS, Startable, start_of
from qtk.targets.runtimes import RUNTIMES


def test_a_bundle_holds_what_a_release_needs(made_bundle: Path, released_run: Path) -> None:
    files = {str(path.relative_to(made_bundle)) for path in made_bundle.rglob("*") if path.is_file()}
    engine = {path.name for path in (released_run / "engine").iterdir()}
    assert engine <= files
    assert {
        "README.md",
        "SHA256SUMS",
        "sbom.cdx.json",
        "compose.yaml",
        "recipe.yaml",
        "LICENSE",
        "README-base.md",
    } <= files
    assert {"report/report.md", "gate/result.json", "gate/junit.xml", "chain/latency/result.json"} <= files
    assert {
        f"chain/{name}/qtk-manifest.json" for name in ("quantized", "engine", "engine-float", "divergence")
    } <= files
    assert files == {*read_sums(made_bundle), "SHA256SUMS"}
    checked = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=made_bundle, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_the_card_has_the_metadata_that_the_hub_reads(made_bundle: Path) -> None:
    card = ModelCard.load(made_bundle / "README.md")
    assert (card.data.license, card.data.base_model, card.data.base_model_relation) == (
        "mit",
        "tiny/origin",
        "quantized",
    )
    assert card.data.quantized_by == "qtk"
    measured = {(result.dataset_type, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert len({metric for _, metric in measured}) == 2
    recorded = json.loads((made_bundle / "chain/divergence-engine/result.json").read_bytes())
    for text in recorded["texts"]:
        assert measured[text["text"], "kl_divergence"] == pytest.approx(text["kl"]["mean"], abs=1e-5)
    for said in (
        "qtk generate .",
        "Every gate of its release passed",
        "name: tiny-release",
        "The licence of the base binds",
    ):
        assert said in card.text


def test_the_bill_is_valid_and_names_packages_and_the_base(made_bundle: Path) -> None:
    text = (made_bundle / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    purls = {part.get("purl") for part in bill["components"]}
    versions = read_manifest(made_bundle / "chain/engine").packages
    assert {f"pkg:pypi/{name}@{version.replace('+', '%2B')}" for name, version in versions.items()} <= purls
    numpy = next(part for part in bill["components"] if part["name"] == "numpy")
    assert numpy["licenses"]
    base = next(part for part in bill["components"] if part["type"] == "machine-learning-model")
    assert base["licenses"] == [{"license": {"id": "MIT"}}]
    assert bill["metadata"]["component"]["name"] == "tiny-int4"


def test_a_bill_names_models_of_the_hub_and_claims_no_unknown_licence() -> None:
    base = Ingredient("base", "org/model", "0123abcd", "apache-2.0", {"model.safetensors": "0" * 64})
    materials = Materials(
        "m",
        "1" * 64,
        "2026-11-29T00:00:00+00:00",
        "deepseek",
        (base,),
        frozenset({("numpy", "0.0.1")}),
        frozenset({"0.1.0"}),
    )
    assert sbom_json(materials) == sbom_json(materials)
    bill = json.loads(sbom_json(materials))
    parts = {part["name"]: part for part in bill["components"]}
    assert parts["model"]["purl"] == "pkg:huggingface/org/model@0123abcd"
    assert parts["model"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert "licenses" not in parts["numpy"], "another version is installed here"
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"name": "deepseek"}}]


def test_a_bundle_runs_what_its_card_says(made_bundle: Path, run_qtk) -> None:
    generate, serve = read_manifest(made_bundle).notes["start"]
    answer = run_qtk(*shlex.split(generate)[1:], cwd=made_bundle)
    assert answer.returncode == 0, answer.stderr
    words = [sys.executable, "-m", "qtk", *shlex.split(serve)[1:], "--port", "0"]
    with subprocess.Popen(words, cwd=made_bundle, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.findall(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        body = {"model": "tiny-int4", "prompt": "a", "max_tokens": 2}
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).status_code == 200
        process.terminate()
    assert process.returncode == 0


def test_the_service_of_a_bundle_starts_what_its_card_says(made_bundle: Path) -> None:
    service = yaml.safe_load((made_bundle / "compose.yaml").read_text())["services"]["model"]
    assert service["entrypoint"][:3] == ["qtk", "serve", "/bundle"]
    parses(shlex.join(service["entrypoint"]))
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["environment"] == ["QTK_API_KEY"]


@pytest.mark.parametrize("name", ["README.md", "model.onnx.data", "chain/quantized/qtk-manifest.json", "LICENSE"])
def test_one_flipped_byte_is_found_elsewhere_and_named(bundle: Path, run_qtk, name: str) -> None:
    good = run_qtk("verify", bundle, "--json")
    assert good.returncode == 0, good.stdout
    statuses = {finding["status"] for finding in json.loads(good.stdout)["findings"]}
    assert statuses == {"ok", "not carried"}
    content = bytearray((bundle / name).read_bytes())
    content[0] = content[0] ^ 1
    (bundle / name).write_bytes(content)
    answer = run_qtk("verify", bundle)
    assert answer.returncode == 3
    assert name in answer.stderr


def test_a_changed_line_of_the_list_is_told_from_a_changed_file(bundle: Path, run_qtk) -> None:
    sums = read_sums(bundle)
    (bundle / "SHA256SUMS").write_text(sums_text({**sums, "model.onnx.data": "0" * 64}))
    answer = run_qtk("verify", bundle)
    assert answer.returncode == 3
    assert "SHA256SUMS (the line of model.onnx.data)" in answer.stderr


def test_what_a_bundle_does_not_carry_is_named(bundle: Path, run_qtk) -> None:
    answer = run_qtk("verify", bundle)
    assert answer.returncode == 0
    for named in ("quantized (quantized-model:", "(model: ../../base)", "parts of the chain are not carried"):
        assert named in answer.stdout


def test_files_that_come_or_go_are_found(bundle: Path, run_qtk) -> None:
    (bundle / ".gitattributes").write_text("* text")
    (bundle / ".cache" / "huggingface").mkdir(parents=True)
    (bundle / ".cache" / "huggingface" / "x").touch()
    assert run_qtk("verify", bundle).returncode == 0, "what the hub adds to a download is its own"
    (bundle / "more.py").touch()
    (bundle / "tokenizer.json").unlink()
    answer = run_qtk("verify", bundle.parent)
    assert answer.returncode == 3
    assert "unrecorded: " in answer.stderr
    assert "missing: " in answer.stderr


def test_a_list_of_sums_that_was_made_to_fit_is_found_by_the_manifests(bundle: Path, run_qtk) -> None:
    sums = read_sums(bundle)
    (bundle / "model.onnx.data").write_bytes(b"other weights")
    other = subprocess.run(["sha256sum", bundle / "model.onnx.data"], capture_output=True, text=True).stdout.split()[0]
    (bundle / "SHA256SUMS").write_text(sums_text({**sums, "model.onnx.data": other}))
    answer = run_qtk("verify", bundle)
    assert answer.returncode == 3
    assert "changed: " in answer.stderr
    assert "model.onnx.data" in answer.stderr


@pytest.mark.parametrize("line", ["nonsense", f"{'0' * 64}  ../outside", f"{'0' * 64}  /etc/passwd"])
def test_a_list_that_is_none_fails(tmp_path: Path, line: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(GateFailed, match="line 1"):
        read_sums(tmp_path)


def test_names_with_odd_letters_survive_the_list(tmp_path: Path) -> None:
    names = ["a b", "back\\slash", "line\nbreak", "ünï.txt", "vertical\x0btab"]
    for name in names:
        (tmp_path / name).write_text(name)
    sums = dict.fromkeys(names, "0" * 64)
    (tmp_path / "SHA256SUMS").write_text(sums_text(sums))
    assert read_sums(tmp_path) == sums


@pytest.fixture
def run_copy(released_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(released_run.parent, tmp_path / "place")
    return tmp_path / "place" / "run"


def test_a_chain_that_does_not_verify_is_not_bundled(run_copy: Path, run_qtk, tmp_path: Path) -> None:
    with open(run_copy / "quantized" / "model.safetensors", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    answer = run_qtk("bundle", run_copy, "-o", tmp_path / "b")
    assert answer.returncode == 3
    assert "quantized/model.safetensors" in answer.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("b", ".b"))]


def test_a_verdict_on_another_state_is_refused(run_copy: Path, run_qtk, tmp_path: Path) -> None:
    manifest = run_copy / "gate" / "qtk-manifest.json"
    content = json.loads(manifest.read_bytes())
    content["inputs"][0]["manifest_sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    answer = run_qtk("bundle", run_copy, "-o", tmp_path / "b")
    assert answer.returncode == 2
    assert "judged another state of the run" in answer.stderr
    shutil.rmtree(run_copy / "gate")
    assert run_qtk("bundle", run_copy, "-o", tmp_path / "b").returncode == 0
    assert "No gate of a release was judged" in (tmp_path / "b" / "README.md").read_text()


def test_a_checkpoint_is_bundled_for_the_runtime_that_is_named(released_run: Path, run_qtk, tmp_path: Path) -> None:
    words = ("bundle", released_run / "quantized", "-o", tmp_path / "b", "--runtime")
    answer = run_qtk(*words, "vllm", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["start"] == ["vllm serve . --served-model-name b"]
    service = yaml.safe_load((tmp_path / "b" / "compose.yaml").read_text())["services"]["model"]
    assert service["entrypoint"][:3] == ["vllm", "serve", "/bundle"]
    assert (tmp_path / "b" / "model.safetensors").is_file()
    assert run_qtk("verify", tmp_path / "b").returncode == 0
    refused = run_qtk(*words, "llama.cpp", "--overwrite")
    assert refused.returncode == 2
    assert "is not taken by llama.cpp. It is taken by: " in refused.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--take", "nothing"), "there is no model or engine of that name. There are: "),
        (("--sign", "no-such-key"), "no such key"),
    ],
)
def test_bad_input_is_a_sentence(released_run: Path, run_qtk, tmp_path: Path, words, complaint: str) -> None:
    answer = run_qtk("bundle", released_run, "-o", tmp_path / "b", *words)
    assert (answer.returncode, (tmp_path / "b").exists()) == (2, False)
    assert complaint in answer.stderr


def test_nothing_to_release_and_a_bundle_of_a_bundle(
    made_bundle: Path, released_run: Path, run_qtk, tmp_path: Path
) -> None:
    assert "nothing to bundle" in run_qtk("bundle", released_run / "latency", "-o", tmp_path / "b").stderr
    assert "is a bundle already" in run_qtk("bundle", made_bundle, "-o", tmp_path / "b").stderr
    assert run_qtk("bundle", tmp_path / "absent", "-o", tmp_path / "b").returncode == 2


def test_a_prepared_engine_says_so_in_name_and_card(released_run: Path, run_qtk, tmp_path: Path) -> None:
    shutil.copytree(released_run.parent, tmp_path / "place")
    engine = tmp_path / "place" / "run" / "engine"
    read_description(engine).model_copy(update={"built": False}).save(engine)
    manifest = json.loads((engine / "qtk-manifest.json").read_bytes())
    described = subprocess.run(["sha256sum", engine / "engine.json"], capture_output=True, text=True).stdout.split()[0]
    manifest["outputs"]["engine.json"] = {"sha256": described, "bytes": (engine / "engine.json").stat().st_size}
    (engine / "qtk-manifest.json").write_text(json.dumps(manifest))
    answer = run_qtk("bundle", engine, "-o", tmp_path / "b", "--json")
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert (told["name"], told["built"]) == ("b-unbuilt", False)
    assert told["start"][0] == "qtk build-engine . -o ../b-engine"
    card = (tmp_path / "b" / "README.md").read_text()
    assert "# b-unbuilt (prepared, not built)" in card
    assert not (tmp_path / "b" / "compose.yaml").exists()


def test_a_stopped_bundle_is_resumed_without_copying_again(released_run: Path, run_qtk, tmp_path: Path) -> None:
    words = ("bundle", released_run, "-o", tmp_path / "b")
    packages = tmp_path / "broken"
    (packages / "cyclonedx").mkdir(parents=True)
    (packages / "cyclonedx" / "__init__.py").write_text("raise KeyboardInterrupt")
    stopped = run_qtk(
        *words, fresh=True, env={"PYTHONPATH": os.pathsep.join((str(packages), os.environ.get("PYTHONPATH", "")))}
    )
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command with --resume continues" in stopped.stderr
    partial = tmp_path / "b.partial"
    assert "files done" in run_qtk("inspect", partial).stdout
    assert run_qtk(*words).returncode == 2, "unfinished work is not thrown away in silence"
    before = (partial / "tokenizer.json").stat().st_ino
    assert run_qtk(*words, "--resume").returncode == 0
    assert (tmp_path / "b" / "tokenizer.json").stat().st_ino == before
    assert run_qtk("verify", tmp_path / "b").returncode == 0
    assert not (tmp_path / "b" / ".bundle").exists()


def test_a_bundle_killed_while_it_is_signed_does_not_look_complete(released_run: Path, run_qtk, tmp_path: Path) -> None:
    """A directory with a manifest counts as complete, so the list of sums and its signature come first."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ssh-keygen").write_text('#!/bin/sh\ncase "$*" in *sign*-n*) kill -KILL $PPID;; esac\n')
    (tools / "ssh-keygen").chmod(0o755)
    words = ("bundle", released_run, "-o", tmp_path / "b", "--sign", tmp_path / "key")
    killed = run_qtk(*words, fresh=True, env={"PATH": os.pathsep.join((str(tools), os.environ["PATH"]))})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = tmp_path / "b.partial"
    assert (partial / "SHA256SUMS").is_file()
    assert not (partial / "qtk-manifest.json").exists()
    assert run_qtk(*words, "--resume").returncode == 0
    assert (tmp_path / "b" / "SHA256SUMS.sig").is_file()
    assert run_qtk("verify", tmp_path / "b", "--key", tmp_path / "key.pub").returncode == 0


def test_large_files_share_their_blocks(tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    with open(large, "wb") as stream:
        stream.truncate(80 * 2**20)
    small.write_text("edited in place by people")
    assert share_file(large, tmp_path / "b")
    assert (tmp_path / "b").stat().st_size == large.stat().st_size
    assert not share_file(small, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_every_runtime_is_started_by_something(runtime: str, released_run: Path) -> None:
    record = RUNTIMES[runtime]
    engine = read_description(released_run / "engine").model_copy(update={"backend": runtime})
    what = [Startable("m", runtime, gguf="m.gguf")] + ([Startable("m", runtime, engine)] if record.engine else [])
    for startable in what:
        start = start_of(startable)
        assert start.commands
        compose = start.compose("My Model")
        if compose is not None:
            content = yaml.safe_load(compose)
            assert content["name"] == "my-model"
            assert content["services"]["model"]["volumes"] == [".:/bundle:ro"]
    assert set(STARTERS) == set(RUNTIMES)


def test_the_limits_of_an_engine_stand_in_what_starts_it(released_run: Path) -> None:
    engine = read_description(released_run / "engine").model_copy(
        update={"backend": "tensorrt-llm", "versions": {"tensorrt-llm": "1.1.0"}}
    )
    start = start_of(Startable("m", "tensorrt-llm", engine))
    [line] = start.commands
    assert (
        line == "trtllm-serve ./engine --tokenizer . --backend tensorrt --max_batch_size 1 --max_seq_len 40 --port 8000"
    )
    assert start.service is not None
    assert start.service["image"].endswith("release:1.1.0}")
    # What its reference lists for 1.0 to 1.2, https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve/trtllm-serve.html
    known = {"--tokenizer", "--backend", "--max_batch_size", "--max_seq_len", "--host", "--port"}
    words = [*line.split(), *start.service["entrypoint"]]
    assert {word for word in words if word.startswith("--")} <= known
    older = start_of(Startable("m", "tensorrt-llm", engine.model_copy(update={"versions": {"tensorrt-llm": "0.18.2"}})))
    assert "--backend" not in older.commands[0]  # which took one value then: pytorch


@pytest.mark.parametrize("built", [True, False])
def test_edge_llm_s_server_takes_its_command(built: bool, released_run: Path, owners_python) -> None:
    """Its own parser of options reads the line, with the limits of the engine in the right places."""
    python = owners_python("edgellm")
    engine = read_description(released_run / "engine").model_copy(update={"backend": "tensorrt-edgellm"})
    start = start_of(Startable("m", "tensorrt-edgellm", engine if built else None))
    program, *words = shlex.split(start.commands[-1])
    assert program == "tensorrt-edgellm-serve"
    code = "import dataclasses, json, sys\nfrom experimental.server.config import parse_server_config\n"
    code += "print(json.dumps(dataclasses.asdict(parse_server_config(sys.argv[1:]))))"
    done = subprocess.run([python, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    model, api = found["model"], found["api"]
    assert (api["host"], api["port"], api["served_model_name"]) == ("127.0.0.1", 8000, "m")
    if built:
        read = (model["model"], model["max_input_len"], model["max_batch_size"], model["max_kv_cache_capacity"])
        assert read == (
            "./checkpoint",
            engine.limits.max_input_len,
            engine.limits.max_batch,
            engine.limits.max_positions,
        )
    else:
        assert model["model"] == "."
