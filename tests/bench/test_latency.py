"""The latency measure: its definitions on a session with known times, and the command on a real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qtk.bench.latency_result import LatencyReport, Quantiles, speed_ratios
from qtk.bench.latency_run import CallDone, measure, measure_engines
from qtk.bench.options import LatencyOptions, parse_shapes
from qtk.checkpoint.manifest import read_manifest, verify_chain
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession, Generation
from qtk.errors import InputError
from qtk.machine import usable_cores


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
    (measured,) = measure([session], options).engines
    long, single = measured.shapes
    assert (long.runs, len(long.call_seconds)) == (3, 3)
    assert long.tokens_per_s == pytest.approx(2 * 6 / (0.5 + 5 * 0.1))
    assert long.decode_tokens_per_s == pytest.approx(2 / 0.1)
    assert long.ttft_ms.p50 == pytest.approx(500)
    assert long.inter_token_ms is not None
    assert long.inter_token_ms.p99 == pytest.approx(100)
    assert (single.inter_token_ms, single.decode_tokens_per_s) == (None, None)
    assert single.tokens_per_s == pytest.approx(2 / 0.5)


def test_the_first_call_says_what_was_compiled_in_it(engine) -> None:
    report = measure([DecoderSession.open(engine, 1)], LatencyOptions(shapes="8/2", warmups=0, runs=1, seconds=0))
    (report,) = report.engines
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
        measure([session], LatencyOptions(shapes="16/8,64/33,90/9", batch_size=3))
    assert all(part in str(caught.value) for part in ("64/33: 97 tokens", "90/9", "batch 3, the engine takes 2"))


def test_command(engine, run_qtk) -> None:
    words = ("bench", "latency", engine, "--shapes", "16/8,32/4", "--runs", "2", "--seconds", "0", "--batch-size", "2")
    done = run_qtk(*words, "--json")
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["engines"]
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
    printed = json.loads(done.stdout)
    stored = json.loads((tmp_path / "latency" / "result.json").read_text())
    assert {name: printed[name] for name in stored if name != "warnings"} == {
        name: value for name, value in stored.items() if name != "warnings"
    }
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


class Counted(DecoderSession):
    """A real session whose calls say that they took the seconds in `times`, in turn, for 8 tokens of prompt; `order` lists
    them."""

    times: tuple[float, ...]
    order: list[str]
    name: str

    def generate(self, prompts, max_new_tokens, decoding, on_token=None) -> Generation:  # type: ignore[no-untyped-def]
        generation = super().generate(prompts, max_new_tokens, decoding, on_token)
        mine = [name for name in self.order if name == self.name]
        self.order.append(self.name)
        seconds = self.times[len(mine) % len(self.times)] * len(prompts[0]) / 8
        return Generation(generation.tokens, generation.finish, seconds, [])


def counted(engine: Path, name: str, times: tuple[float, ...], order: list[str]) -> Counted:
    opened = DecoderSession.open(engine, 1)
    session = Counted(engine.parent / name, opened.description, opened.executor)
    session.times, session.order, session.name = times, order, name
    return session


def test_engines_take_turns_and_what_slows_a_pair_cancels(engine) -> None:
    """The machine becomes four times as slow in the middle: each rate is far off, the ratio of the pairs is not."""
    order: list[str] = []
    slow, fast = (8.0, 8.0, 8.4, 32.0, 33.0), (4.0, 4.0, 4.0, 16.0, 16.0)  # the first ones are warm-ups
    sessions = [counted(engine, "a", slow, order), counted(engine, "b", fast, order)]
    report = measure(sessions, LatencyOptions(shapes="8/2", warmups=0, runs=4, seconds=0))
    assert order == ["a", "b"] * 5
    (ratio,) = report.ratios
    logs = np.log([8 / 4, 8.4 / 4, 32 / 16, 33 / 16])
    assert (ratio.engine, ratio.baseline, ratio.shape, ratio.pairs) == ("b", "a", "8/2", 4)
    assert ratio.ratio == pytest.approx(np.exp(logs.mean()))
    assert ratio.standard_error == pytest.approx(ratio.ratio * logs.std(ddof=1) / 2)
    (rate,) = report.engines[0].shapes
    assert rate.standard_error is not None
    assert ratio.standard_error / ratio.ratio < 0.02 < 0.3 < rate.standard_error / rate.tokens_per_s
    # The rates are worth little, so both engines are named with their figures, and the ratio is in doubt.
    assert [warning.split(",")[0] for warning in report.warnings] == [
        "8/2: a is noisy: slowest call 4.1 times the fastest",
        "8/2: b is noisy: slowest call 4.0 times the fastest",
    ]
    assert f"load {report.load_after:.1f} on {report.cores} cores" in ratio.in_doubt


def test_a_calm_measurement_is_not_in_doubt(engine) -> None:
    order: list[str] = []
    sessions = [counted(engine, "a", (2.0, 2.1), order), counted(engine, "b", (1.0,), order)]
    report = measure(sessions, LatencyOptions(shapes="8/2,4/1", warmups=1, runs=2, seconds=0))
    assert [(ratio.shape, ratio.in_doubt) for ratio in report.ratios] == [("8/2", ""), ("4/1", "")]
    assert report.warnings == []


def test_the_machine_stands_in_the_result(engine, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    report = measure([DecoderSession.open(engine)], LatencyOptions(shapes="8/2", warmups=0, runs=1, seconds=0))
    assert (report.threads, report.cores) == (1, usable_cores())
    assert report.load_before is not None
    assert report.load_after is not None
    (shape,) = report.engines[0].shapes
    assert shape.standard_error is None, "one call says nothing of the spread"


def test_the_time_that_is_left_is_told_from_the_first_calls_on(engine) -> None:
    told: list[CallDone] = []
    sessions = [counted(engine, "a", (2.0,), []), counted(engine, "b", (1.0,), [])]
    measure(sessions, LatencyOptions(shapes="8/1,16/1", warmups=1, runs=2, seconds=0), on_call=told.append)
    # Of a call's time, all is the prompt's here: 3 s a round at 8/1, 6 s at 16/1, three rounds of each with the warm-up.
    assert [call.left for call in told[1:]] == pytest.approx([27, 25.5, 24, 22.5, 21, 19.5, 18, 15, 12, 9, 6, 3, 0])
    assert told[-1].detail == "16/1: 2 calls of each"


def test_a_result_of_one_engine_as_it_was_written_before_is_read(engine) -> None:
    report = measure([DecoderSession.open(engine, 1)], LatencyOptions(shapes="8/2", warmups=0, runs=2, seconds=0))
    (now,) = report.engines
    before = {**now.model_dump(), "threads": None, "processor": "p"}
    read = LatencyReport.model_validate(before)
    assert read.engines == [now]
    assert (read.processor, read.threads, read.ratios, read.load_before) == ("p", None, [], None)
    other = LatencyReport.model_validate({**before, "engine": "other"})
    (ratio,) = speed_ratios([read, other])
    assert (ratio.engine, ratio.baseline, ratio.ratio, ratio.pairs) == ("other", "engine", 1.0, 0)
    assert "one after the other" in ratio.in_doubt


def test_two_engines_on_the_command_line(engine, tmp_path, run_qtk) -> None:
    other = shutil.copytree(engine, tmp_path / "int4")
    words = ("--shapes", "8/2", "--warmups", "0", "--runs", "2", "--seconds", "0", "-o", tmp_path / "latency")
    done = run_qtk("bench", "latency", engine, other, *words)
    assert done.returncode == 0, done.stderr
    assert "Against engine" in done.stdout
    result = LatencyReport.model_validate_json((tmp_path / "latency" / "result.json").read_bytes())
    assert [ratio.engine for ratio in result.ratios] == ["int4"]
    assert [record.role for record in read_manifest(tmp_path / "latency").inputs] == ["engine", "engine 2"]
    refused = run_qtk("bench", "latency", engine, engine)
    assert (refused.returncode, "names of their own, not engine, engine" in refused.stderr) == (2, True)


def test_engines_that_do_not_fit_together_are_measured_one_after_the_other(engine, tmp_path, monkeypatch) -> None:
    other = shutil.copytree(engine, tmp_path / "int4")
    monkeypatch.setattr("qtk.bench.latency_run.available_memory", lambda: 1)
    report = measure_engines([engine, other], LatencyOptions(shapes="8/2", warmups=0, runs=2, seconds=0))
    assert [measured.engine for measured in report.engines] == ["engine", "int4"]
    assert [(ratio.pairs, "one after the other" in ratio.in_doubt) for ratio in report.ratios] == [(0, True)]
    assert "do not fit the memory together" in report.warnings[0]
