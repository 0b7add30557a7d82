"""A run stopped at any moment goes on with --resume to the same bits, or starts again and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtk.calibration.options import CalibrationOptions
from qtk.errors import GateFailed, InputError
from qtk.quantization import method_choice as methods
from qtk.quantization import quantize as pipeline
from qtk.quantization import resume
from qtk.quantization.checkpoint_run import QuantizationRun
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model
from qtk.quantization.report import LOG_NAME
from qtk.quantization.resume import ResumeState

ROWS = CalibrationOptions(samples=8, seq_len=48)


class Stopped(BaseException):
    """What stands for a signal here: nothing in qtk catches it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_tiny, write_byte_tokenizer) -> Path:
    place = make_tiny(tmp_path_factory.mktemp("model") / "m", "llama", hidden_size=64, intermediate_size=96)
    write_byte_tokenizer(place)
    return place


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory: pytest.TempPathFactory):
    """whole(effort="best") -> the directory of a run with these options that was never stopped."""
    made: dict[str, Path] = {}

    def get(**options: object) -> Path:
        key = json.dumps(options)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "out"
            quantize_model(model, made[key], QuantizeOptions(group_size=32, **options), ROWS)
        return made[key]

    return get


def stop(monkeypatch: pytest.MonkeyPatch, where: object, name: str, *, calls: int = 1, after: bool = True) -> None:
    """Stops the run at the given call of a function, after or before it did its work."""
    original, count = getattr(where, name), [0]

    def wrapped(*arguments, **settings):
        count[0] += 1
        if count[0] == calls and not after:
            raise Stopped
        result = original(*arguments, **settings)
        if count[0] == calls:
            raise Stopped
        return result

    monkeypatch.setattr(where, name, wrapped)


MOMENTS = {
    "first block": ({}, (ResumeState, "save"), {"calls": 1}),
    "between stream and state": ({}, (resume, "write_json"), {"calls": 2, "after": False}),
    "tuned blocks": ({"effort": "best"}, (ResumeState, "save"), {"calls": 2}),
    "spilled": ({"spilled": True}, (ResumeState, "save"), {"calls": 2}),
    "read back": ({}, (pipeline, "read_back"), {"after": False}),
    "digested": ({}, (pipeline, "sync_tree"), {}),
    "log written": ({}, (pipeline, "remove_work"), {"after": False}),
    "auto, gptq": ({"method": "auto"}, (ResumeState, "save"), {"calls": 1}),
    "auto, gptq finished": ({"method": "auto"}, (methods, "save_finished"), {"calls": 1}),
    "auto, gptq not recorded": ({"method": "auto"}, (methods, "save_finished"), {"calls": 1, "after": False}),
    "auto, awq": ({"method": "auto"}, (ResumeState, "save"), {"calls": 5}),
    "auto, chosen": ({"method": "auto"}, (methods, "save_finished"), {"calls": 3}),
    "auto, moving": ({"method": "auto"}, (Path, "rename"), {"calls": 2}),
    "auto, moved": ({"method": "auto"}, (methods, "move_up"), {}),
    "auto, read back": ({"method": "auto"}, (pipeline, "read_back"), {}),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_bits_whenever_it_was_stopped(
    model, whole, tmp_path, monkeypatch, activations_in_memory, moment: str
) -> None:
    settings, (where, name), when = MOMENTS[moment]
    settings = dict(settings)
    if settings.pop("spilled", False):
        activations_in_memory(1000)
    options = QuantizeOptions(group_size=32, **settings)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop(patch, where, name, **when)
        quantize_model(model, tmp_path / "out", options, ROWS)
    assert (tmp_path / "out.partial").is_dir()
    report = quantize_model(model, tmp_path / "out", options, ROWS, resume=True)
    expected = whole(**settings)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (expected / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in expected.iterdir())
    layers = [
        [json.loads(x)["layer"] for x in (p / LOG_NAME).read_text().splitlines()] for p in (tmp_path / "out", expected)
    ]
    assert layers[0] == layers[1]
    assert len(layers[0]) == 21
    assert report.seconds > 0


def test_after_the_last_block_no_block_is_quantized_again(model, tmp_path, monkeypatch) -> None:
    options = QuantizeOptions(group_size=32, method="auto")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop(patch, pipeline, "read_back", after=False)
        quantize_model(model, tmp_path / "out", options, ROWS)
    seconds = json.loads((tmp_path / "out.partial/.calibration/chosen.finished.json").read_text())["run"]["seconds"]
    monkeypatch.setattr(QuantizationRun, "quantize_block", lambda *_: pytest.fail("a block is quantized again"))
    report = quantize_model(model, tmp_path / "out", options, ROWS, resume=True)
    assert report.seconds > round(seconds, 2) > 0  # of both sessions


def stopped_after_two_blocks(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Path:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop(patch, ResumeState, "save", calls=2)
        quantize_model(model, out, QuantizeOptions(group_size=32, **options), ROWS)
    return out.with_name(f"{out.name}.partial")


@pytest.mark.parametrize("damage", ["no stream", "short stream", "no weights", "state", "no begin"])
def test_a_state_that_is_not_whole_starts_again(model, whole, tmp_path, monkeypatch, capfd, damage: str) -> None:
    partial = stopped_after_two_blocks(model, tmp_path / "out", monkeypatch)
    work = partial / ".calibration"
    stream = work / "stream-0-after-2.bin"
    if damage == "no stream":
        stream.unlink()
    elif damage == "short stream":
        stream.write_bytes(stream.read_bytes()[:-2])
    elif damage == "no weights":
        (partial / "model.safetensors").unlink()
    else:
        (work / ("state.json" if damage == "state" else "begun.json")).write_text('{"blocks": ')
    quantize_model(model, tmp_path / "out", QuantizeOptions(group_size=32), ROWS, resume=True)
    assert "starting again" in capfd.readouterr().err
    assert (tmp_path / "out/model.safetensors").read_bytes() == (whole() / "model.safetensors").read_bytes()


def test_what_decides_the_bits_is_refused_by_name_and_what_does_not_is_taken(model, tmp_path, monkeypatch) -> None:
    partial = stopped_after_two_blocks(model, tmp_path / "out", monkeypatch)
    for options, rows, words in (
        (QuantizeOptions(group_size=32, sym=False), ROWS, "another --sym,"),
        (QuantizeOptions(group_size=32), ROWS.model_copy(update={"seed": 1}), "--seed, another calibration text"),
        (QuantizeOptions(group_size=32, method="auto"), ROWS, "--method"),
    ):
        with pytest.raises(InputError, match=words):
            quantize_model(model, tmp_path / "out", options, rows, resume=True)
        assert (partial / ".calibration/state.json").is_file()
    # The dtype of the first session is kept, though this machine would now choose another.
    begun = json.loads((partial / ".calibration/begun.json").read_text())["compute_dtype"]
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "float32" if begun == "bfloat16" else "bfloat16")
    monkeypatch.setattr(QuantizationRun, "quantize_block", counted := Counted(QuantizationRun.quantize_block))
    report = quantize_model(model, tmp_path / "out", QuantizeOptions(group_size=32, memory=8), ROWS, resume=True)
    assert report.compute_dtype == begun
    assert counted.calls == 1


def test_what_lies_there_is_told_and_never_thrown_away(model, tmp_path, monkeypatch, run_qtk) -> None:
    partial = stopped_after_two_blocks(model, tmp_path / "out", monkeypatch, method="auto")
    words = ["quantize", model, "-o", tmp_path / "out", "--group-size", 32, "--samples", 8, "--seq-len", 48]
    for more, terms in ((("--method", "auto"), "--resume continues it"), ((), "another --method")):
        refused = run_qtk(*words, *more)
        assert refused.returncode == 2
        assert "2 of 6 blocks done" in refused.stderr
        assert terms in refused.stderr
    assert (partial / "gptq/.calibration/state.json").is_file()
    inspected = json.loads(run_qtk("inspect", partial, "--json").stdout)
    assert inspected["kind"] == "unfinished work"
    assert inspected["facts"]["done"] == "2 of 6 blocks done"
    anew = run_qtk(*words, "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert "2 of 6 blocks done" in anew.stderr


class Counted:
    """A method that counts its calls."""

    def __init__(self, method) -> None:
        self.method, self.calls = method, 0

    def __get__(self, instance, owner):
        def call(*arguments):
            self.calls += 1
            return self.method(instance, *arguments)

        return call


@pytest.mark.parametrize("method", ["gptq", "auto", "rtn"])
def test_stopped_before_the_first_block_nothing_is_left(model, tmp_path, monkeypatch, method: str) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop(patch, QuantizationRun, "quantize_block", after=False)
        quantize_model(model, tmp_path / "out", QuantizeOptions(group_size=32, method=method), ROWS)
    assert list(tmp_path.iterdir()) == []


def test_stale_files_do_not_stay_beside_the_new_ones(model, whole, tmp_path, monkeypatch) -> None:
    partial = stopped_after_two_blocks(model, tmp_path / "out", monkeypatch)
    (partial / ".calibration/state.json").unlink()
    (partial / "model-00001-of-00002.safetensors").write_bytes(b"old")
    quantize_model(model, tmp_path / "out", QuantizeOptions(group_size=32), ROWS, resume=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in whole().iterdir())


def test_a_kl_that_is_no_number_never_wins() -> None:
    assert methods.nearest({"gptq": float("nan"), "awq": 3.0}) == "awq"
    assert methods.nearest({"gptq": 0.5, "awq": None}) == "gptq"
    with pytest.raises(GateFailed, match="Neither gptq nor awq"):
        methods.nearest({"gptq": float("nan"), "awq": float("inf")})
