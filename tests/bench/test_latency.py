"""The latency measure: its definitions on a session with known times, and the command on a real engine."""

from __future__ import annotations

import json

import pytest

from qtk.bench.latency import Quantiles, measure
from qtk.bench.options import LatencyOptions, parse_shapes
from qtk.checkpoint.manifest import read_manifest, verify_chain
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession, Generation
from qtk.errors import InputError


class TimedSession(DecoderSession):
    """A real session whose calls also say how long they took: 0.5 s for the prompt, 0.1 s for each later token."""

    def generate(self, prompts, max_new_tokens, decoding, on_token=None) -> Generation:  # type: ignore[no-untyped-def]
        generation = super().generate(prompts, max_new_tokens, decoding, on_token)
        assert decoding.ignore_eos
        assert [len(tokens) for tokens in generation.tokens] == [max_new_tokens] * len(prompts)
        return Generation(generation.tokens, generation.finish, 0.5, [0.1] * len(generation.token_seconds))


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("latency") / "engine"
    build_engine(tiny(), out, BuildOptions(max_input_len=64, max_output_len=32, max_batch_size=2))
    return out


def test_rates_follow_their_definitions(engine) -> None:
    opened = DecoderSession.open(engine, 1)
    session = TimedSession(engine, opened.description, opened.executor)
    options = LatencyOptions(shapes="16/6,8/1", batch_size=2, warmups=1, runs=3, seconds=0)
    report = measure(session, options)
    long, single = report.shapes
    assert (long.runs, len(long.call_seconds)) == (3, 3)
    assert long.tokens_per_s == pytest.approx(2 * 6 / (0.5 + 5 * 0.1))
    assert long.decode_tokens_per_s == pytest.approx(2 / 0.1)
    assert long.ttft_ms.p50 == pytest.approx(500)
    assert long.inter_token_ms is not None
    assert long.inter_token_ms.p99 == pytest.approx(100)
    assert (single.inter_token_ms, single.decode_tokens_per_s) == (None, None)
    assert single.tokens_per_s == pytest.approx(2 / 0.5)


def test_the_first_call_says_what_was_compiled_in_it(engine) -> None:
    report = measure(DecoderSession.open(engine, 1), LatencyOptions(shapes="8/2", warmups=0, runs=1, seconds=0))
    assert (report.compiled_before, report.first_call) == (None, f"{report.first_call_ms:.0f} ms")
    words = {False: "with the compiling of its kernels", True: "its kernels found compiled"}
    for state, said in words.items():
        assert report.model_copy(update={"compiled_before": state}).first_call.endswith(f" ms, {said}")


def test_quantiles() -> None:
    spread = Quantiles.of([i / 1000 for i in range(1, 102)])
    assert spread is not None
    assert (spread.mean, spread.p50, spread.p90, spread.p99) == pytest.approx((51, 51, 91, 100))


def test_shapes_are_parsed_and_all_wrong_ones_named() -> None:
    assert parse_shapes("16/8, 64/32") == [(16, 8), (64, 32)]
    with pytest.raises(InputError, match=r"'16', '0/4', 'a/b'"):
        parse_shapes("16,0/4,a/b,8/8")
    with pytest.raises(InputError, match="nothing"):
        parse_shapes("")


def test_shapes_beyond_the_engine_are_refused_together(engine) -> None:
    session = DecoderSession.open(engine, 1)
    with pytest.raises(InputError) as caught:
        measure(session, LatencyOptions(shapes="16/8,64/33,90/9", batch_size=3))
    assert all(part in str(caught.value) for part in ("64/33: 97 tokens", "90/9", "batch 3, the engine takes 2"))


def test_command(engine, run_qtk) -> None:
    words = ("bench", "latency", engine, "--shapes", "16/8,32/4", "--runs", "2", "--seconds", "0", "--batch-size", "2")
    done = run_qtk(*words, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(s["input_len"], s["output_len"], s["runs"]) for s in report["shapes"]] == [(16, 8, 2), (32, 4, 2)]
    assert all(s["tokens_per_s"] > 0 and s["ttft_ms"]["p99"] >= s["ttft_ms"]["p50"] for s in report["shapes"])
    assert (report["backend"], report["accuracy_level"]) == ("onnxruntime", 4)
    shown = run_qtk(*words)
    assert "16/8" in shown.stdout
    assert "First call: " in shown.stdout
    refused = run_qtk("bench", "latency", engine.parent)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "engine.json is missing" in refused.stderr


def test_the_result_becomes_a_directory_of_the_chain(engine, tmp_path, run_qtk) -> None:
    words = ("bench", "latency", engine, "--shapes", "8/2", "--warmups", "0", "--runs", "1", "--seconds", "0")
    done = run_qtk(*words, "-o", tmp_path / "latency", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "latency" / "result.json").read_text()).items() <= json.loads(done.stdout).items()
    assert read_manifest(tmp_path / "latency").kind == "latency"
    assert not [finding for finding in verify_chain(tmp_path / "latency") if finding.bad]
    again = run_qtk(*words, "-o", tmp_path / "latency")
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert run_qtk(*words, "-o", tmp_path / "latency", "--overwrite").returncode == 0


def test_a_file_name_for_the_result_is_answered(engine, tmp_path, run_qtk) -> None:
    done = run_qtk("bench", "latency", engine, "-o", tmp_path / "latency.json")
    assert done.returncode == 2
    assert (
        f"-o names a directory now, into which result.json is written: give -o {tmp_path / 'latency'}." in done.stderr
    )
    assert not list(tmp_path.iterdir())
