"""Safetensors directories: read by pread, written in shards, carried byte for byte, put in place in one step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.checkpoint.reader import INDEX_NAME, Checkpoint, require_finite
from qtk.checkpoint.safetensors_file import DTYPES, SafetensorsFile
from qtk.checkpoint.staging import partial_path, staged_directory
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec, copy_companions
from qtk.errors import InputError, MachineError
from qtk.models.rope import RopeSettings


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 2, shape).to(dtype) if dtype == torch.bool else (torch.randn(shape) * 9).to(dtype)


def specs_of(tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(
        st.tuples(
            st.sampled_from([getattr(torch, name) for name, _ in DTYPES.values()]),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        min_size=1,
        max_size=6,
    ),
    shard_bytes=st.sampled_from([40, 10**9]),
)
def test_what_is_written_is_what_the_safetensors_package_reads(tmp_path_factory, content, shard_bytes) -> None:
    directory = tmp_path_factory.mktemp("written")
    tensors = {f"layer.{i}.weight": random_tensor(dtype, tuple(shape)) for i, (dtype, shape) in enumerate(content)}
    with CheckpointWriter(directory, specs_of(tensors), shard_bytes=shard_bytes) as writer:
        for name in reversed(tensors):  # any order will do
            writer.write(name, tensors[name])
    (directory / "config.json").write_text("{}")
    theirs: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        theirs |= load_file(path)
    ours = Checkpoint(directory)
    assert set(theirs) == set(ours.names) == set(tensors)
    for name, tensor in tensors.items():
        for read in (theirs[name], ours.tensor(name)):
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert _bytes(read) == _bytes(tensor)


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


@pytest.mark.parametrize(("name", "nbytes"), DTYPES.values())
def test_the_table_of_dtypes_agrees_with_torch(name: str, nbytes: int) -> None:
    assert getattr(torch, name).itemsize == nbytes


def test_shards_and_their_index(tmp_path) -> None:
    tensors = {f"w{i}": torch.full((100,), float(i)) for i in range(5)}
    with CheckpointWriter(tmp_path, specs_of(tensors), shard_bytes=1000) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == 2000
    assert index["weight_map"]["w4"] == names[2]
    with safe_open(tmp_path / names[0], "pt") as shard:
        assert list(shard.keys()) == ["w0", "w1"]


def test_rows_in_pieces_and_rows_read_alone(tmp_path) -> None:
    tensor = torch.randn(10, 7)
    with CheckpointWriter(tmp_path, {"w": TensorSpec(torch.float32, (10, 7))}) as writer:
        writer.write_rows("w", 4, tensor[4:])
        writer.write_rows("w", 0, tensor[:4])
        writer.mark_written("w")
    (tmp_path / "config.json").write_text("{}")
    assert torch.equal(Checkpoint(tmp_path).rows("w", 3, 8), tensor[3:8])


def test_a_tensor_that_was_forgotten_is_a_bug(tmp_path) -> None:
    writer = CheckpointWriter(tmp_path, {"w": TensorSpec(torch.float32, (2,))})
    with pytest.raises(ValueError, match="never written"):
        writer.close()
    writer.abandon()
    with CheckpointWriter(tmp_path, {"w": TensorSpec(torch.float32, (2,))}) as writer:
        with pytest.raises(ValueError, match="laid out as"):
            writer.write("w", torch.zeros(3))
        writer.write("w", torch.zeros(2))


def test_resume_keeps_what_was_written(tmp_path) -> None:
    specs = {"a": TensorSpec(torch.float32, (4,)), "b": TensorSpec(torch.float32, (4,))}
    first = CheckpointWriter(tmp_path, specs)
    first.write("a", torch.arange(4.0))
    first.abandon()  # killed here
    with CheckpointWriter(tmp_path, specs, resume=True) as second:
        second.mark_written("a")
        second.write("b", torch.ones(4))
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.arange(4.0))


def test_more_than_the_disk_holds_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(MachineError, match="are needed and the disk has"):
        CheckpointWriter(tmp_path, {"w": TensorSpec(torch.float32, (10**12, 1000))})
    assert list(tmp_path.iterdir()) == []


def test_reading_holds_only_what_was_asked_for(tmp_path) -> None:
    save_file({f"w{i}": torch.zeros(4_000_000) for i in range(20)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path)
    checkpoint.tensor("w0")
    before = psutil.Process().memory_info().rss
    for name in checkpoint.names:
        checkpoint.tensor(name).sum()
    assert psutil.Process().memory_info().rss - before < 80e6  # 320 MB passed by, 16 MB at a time


def test_companions_and_config_are_carried_byte_for_byte(tiny, tmp_path) -> None:
    source = Path(shutil.copytree(tiny("llama"), tmp_path / "source"))
    odd = b'{\r\n   "b": 1,\t"a": 2.50}\n\n'
    (source / "tokenizer_config.json").write_bytes(odd)
    for name in ("tekken.json", "tokenizer.model.v3", "vocab.txt", "source.spm", "chat_template.json"):
        (source / name).write_bytes(odd)
    (source / "LICENSE.txt").write_bytes(b"\xff\xfe licence")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    (source / "notes.bin").write_bytes(b"pickle?")
    out = tmp_path / "out"
    out.mkdir()
    copy_companions(Checkpoint(source), out)
    assert (out / "tokenizer_config.json").read_bytes() == odd
    for name in ("tekken.json", "tokenizer.model.v3", "vocab.txt", "source.spm", "chat_template.json"):
        assert (out / name).read_bytes() == odd
    assert (out / "LICENSE.txt").read_bytes() == b"\xff\xfe licence"
    assert (out / "additional_chat_templates" / "tool.jinja").is_file()
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert not (out / "modeling_evil.py").exists()
    assert not (out / "notes.bin").exists()


def test_every_wrong_shape_is_listed(tiny) -> None:
    checkpoint = Checkpoint(tiny("llama"))
    with pytest.raises(InputError) as caught:
        checkpoint.require_shapes({"nowhere": (1,), "model.norm.weight": (5,), "model.embed_tokens.weight": (320, 128)})
    assert "nowhere: missing" in str(caught.value)
    assert "model.norm.weight: shape [128], config.json says [5]" in str(caught.value)
    assert "embed_tokens" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x00" * 7, b"\xff" * 200, b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1}      '],
    ids=["empty", "short", "absurd length", "no entries"],
)
def test_a_damaged_header_is_refused(tmp_path, damage: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(damage)
    with pytest.raises(InputError, match="is not a safetensors file"):
        SafetensorsFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [400], "data_offsets": [0, 1600]},
        {"dtype": "Q4_0", "shape": [4], "data_offsets": [0, 16]},
        {"shape": [4]},
    ],
)
def test_an_entry_that_lies_is_refused(tmp_path, entry: dict) -> None:
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    with pytest.raises(InputError):
        SafetensorsFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn])
def test_nan_is_found_in_every_float_dtype(dtype: torch.dtype) -> None:
    values = torch.ones(64).to(dtype)
    require_finite(values, "w")
    values[17] = float("nan")
    with pytest.raises(InputError, match="w holds 1 NaN"):
        require_finite(values, "w")


def test_both_spellings_of_rope_settings_in_a_checkpoint(tiny) -> None:
    new = Checkpoint(tiny("llama-linear-rope")).config
    assert "rope_parameters" in new
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old |= {"rope_theta": 100000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert RopeSettings.from_config(old, 512) == RopeSettings.from_config(new, 512)


def test_a_directory_appears_only_when_it_is_complete(tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), staged_directory(out) as work:
        (work / "half").write_text("x")
        assert not out.exists()
        raise RuntimeError("the work failed")
    assert list(tmp_path.iterdir()) == []
    with staged_directory(out) as work:
        (work / "whole").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]


def test_two_commands_on_one_output_are_refused(tmp_path) -> None:
    with (
        staged_directory(tmp_path / "out"),
        pytest.raises(InputError, match="Another qtk command is writing"),
        staged_directory(tmp_path / "out"),
    ):
        pass


def test_files_that_only_look_like_qtks_are_left_alone(tmp_path) -> None:
    (tmp_path / "poetry.lock").write_text("pinned")
    with staged_directory(tmp_path / "poetry") as work:
        (work / "whole").touch()
    assert (tmp_path / "poetry.lock").read_text() == "pinned"
    partial = partial_path(tmp_path / "out")
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        for _ in range(2):
            with pytest.raises(InputError, match="is in the way"), staged_directory(tmp_path / "out", **options):
                pass
    assert (partial / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.partial", "poetry", "poetry.lock"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("file/out", "file is not a directory"),
        ("file/deeper/out", "file is not a directory"),
        ("dangling", "is a symbolic link"),
        ("link", "is a symbolic link"),
        ("taken", "is in the way"),
    ],
)
def test_an_output_that_cannot_be_written_gets_a_sentence(tmp_path, name: str, complaint: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    partial_path(tmp_path / "taken").touch()
    with pytest.raises(InputError, match=complaint), staged_directory(tmp_path / name, overwrite=True):
        pass
    assert not any(path.name.endswith("lock") for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "complaint"), [("model", "is the input"), ("model/inner", "lies inside the output")]
)
def test_an_output_never_replaces_its_input(tmp_path, source: str, complaint: str) -> None:
    model = tmp_path / "model"
    with staged_directory(model) as work:
        (work / MANIFEST_NAME).write_text("{}")
        (work / "inner").mkdir()
    with (
        pytest.raises(InputError, match=complaint),
        staged_directory(tmp_path / "x" / ".." / "model", overwrite=True, inputs=[tmp_path / source]),
    ):
        pass
    assert (model / "inner").is_dir()


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_replaced_directory_leaves_nothing_behind(tmp_path, monkeypatch, in_one_step: bool) -> None:
    if not in_one_step:
        monkeypatch.setattr("qtk.checkpoint.staging.exchange", lambda *_: False)
    for content in ("old", "new"):
        with staged_directory(tmp_path / "out", overwrite=True) as work:
            (work / MANIFEST_NAME).write_text(content)
    assert (tmp_path / "out" / MANIFEST_NAME).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_says_what_is_left(tmp_path) -> None:
    def stopped(name: str, **options: bool) -> str:
        with pytest.raises(KeyboardInterrupt) as caught, staged_directory(tmp_path / name, **options):
            raise KeyboardInterrupt
        return caught.value.args[0]

    assert stopped("out") == f"{tmp_path / 'out'} was not written."
    with staged_directory(tmp_path / "stands") as work:
        (work / MANIFEST_NAME).touch()
    assert stopped("stands", overwrite=True) == f"{tmp_path / 'stands'} is unchanged."


def test_room_that_a_resumed_run_holds_already_is_not_asked_for_again(tmp_path, monkeypatch) -> None:
    specs = {"w": TensorSpec(torch.float32, (1 << 20,))}
    CheckpointWriter(tmp_path, specs).abandon()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))  # a quarter of it
    CheckpointWriter(tmp_path, specs, resume=True).abandon()
    with pytest.raises(MachineError, match="are needed and the disk has"):
        CheckpointWriter(tmp_path, specs)


@pytest.mark.parametrize(
    "header",
    [
        '{"w":' * 50_000,
        '{"w": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
    ],
    ids=["nested", "Infinity", "1e999"],
)
def test_a_header_that_cannot_be_read_is_refused(tmp_path, header: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(InputError, match="is not a safetensors file"):
        SafetensorsFile(path)


def test_a_directory_is_not_a_safetensors_file(tmp_path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match="no such file"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_sharded_and_single_files_hold_the_same(tmp_path, make_tiny) -> None:
    one = Checkpoint(make_tiny(tmp_path / "one", "qwen2"))
    many = Checkpoint(make_tiny(tmp_path / "many", "qwen2", shard_size="200KB"))
    assert len(many.weight_files) > 3
    assert sorted(one.names) == sorted(many.names)
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.names)


def test_a_file_that_grows_while_it_is_read_is_named(tiny, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny("llama"), model)
    checkpoint = Checkpoint(model)
    checkpoint.tensor("model.norm.weight")
    checkpoint.require_unchanged()
    with open(model / "model.safetensors", "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"written to while they were read:\n +.*/model/model\.safetensors"):
        checkpoint.require_unchanged()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2.0], "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [8, 16]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        [],
    ],
)
def test_a_header_with_a_malformed_or_overlapping_entry_is_refused_by_the_tensors_name(tmp_path, entry) -> None:
    first = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"first": first, "second": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(InputError, match="second"):
        SafetensorsFile(path)
