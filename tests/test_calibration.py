"""Calibration text: every source and chat form, packing, padding, and what is wrong with bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qtk.calibration.held_out import standard_library_modules
from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import calibration_rows
from qtk.calibration.sources import samples
from qtk.errors import InputError
from qtk.models.chat import codefuse_chat
from qtk.models.tokenizer import TextTokenizer

TALK = [{"role": "human", "content": "Add 1 and 2."}, {"role": "bot", "content": "3\n"}]


@pytest.fixture
def tokenizer(tiny) -> TextTokenizer:
    return TextTokenizer(tiny("llama"))


def rows(tokenizer: TextTokenizer, source: Path | str, count: int = 8, seq_len: int = 64, **options):
    return calibration_rows(tokenizer, CalibrationOptions(calibration=str(source), samples=count, **options), seq_len)


def test_standard_library_rows_are_full_repeatable_and_never_held_out(tokenizer) -> None:
    first, again, other = (rows(tokenizer, "python-stdlib", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert first.token_count == 8 * 64
    assert not first.padded
    sides = [{name for name, _ in standard_library_modules(held_out=side)} for side in (True, False)]
    assert len(sides[0]) > 20
    assert not sides[0] & sides[1]


def test_text_is_packed_end_to_end(tokenizer, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh" * 20)
    packed = rows(tokenizer, tmp_path / "a.txt", seq_len=50)
    assert packed.tokens.shape == (3, 50)  # the last 10 tokens are too few for a row of their own
    assert tokenizer.decode(packed.tokens[0].tolist()) == ("abcdefgh" * 20)[:50]


def test_conversations_are_rows_of_their_own_and_padding_is_marked(tokenizer, tmp_path) -> None:
    lines = [{"chat_rounds": TALK}, {"messages": [{"role": "user", "content": "x" * 200}]}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    got = rows(tokenizer, tmp_path / "chat.jsonl", seq_len=100, chat_format="codefuse")
    text = "<s>human\nAdd 1 and 2.\n<s>bot\n3\n</s>\n"
    assert got.lengths.tolist() == [len(tokenizer.encode(text)), 100]
    assert got.tokens[0, : got.lengths[0]].tolist() == tokenizer.encode(text)
    assert got.keep().sum().item() == got.token_count
    model_form = rows(tokenizer, tmp_path / "chat.jsonl", seq_len=100)
    assert model_form.tokens[0, : model_form.lengths[0]].tolist() == tokenizer.encode(
        "<s>human\nAdd 1 and 2.</s><s>bot\n3\n</s>"
    )


def test_codefuse_format_is_byte_exact() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert codefuse_chat(messages, "<eos>", generation_prompt=True) == "<s>system\nBe brief.\n<s>human\nhi\n<s>bot\n"
    assert codefuse_chat(TALK, "<eos>", generation_prompt=False) == "<s>human\nAdd 1 and 2.\n<s>bot\n3\n<eos>\n"


def test_parquet(tokenizer, tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"text": ["def f():\n    return 1\n" * 10] * 3}), tmp_path / "t.parquet")
    assert rows(tokenizer, tmp_path / "t.parquet").token_count == 8 * 64


def test_local_data_set_through_datasets(tokenizer, tmp_path, monkeypatch) -> None:
    """What a hub id does, offline: `datasets` reads any loadable name; here a builder name with no data fails in a sentence."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="failed"):
        list(samples("no-such-owner/no-such-set", 0))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", "", "no calibration text"),
        ("empty.jsonl", "\n", "no calibration text"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        ("field.jsonl", '{"other": 1}\n', "line 1 has none of the fields"),
        ("list.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("role.jsonl", '{"messages": [{"role": "user"}]}\n', "line 1: messages must be"),
        ("who.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}\n', "tool"),
        ("bad.parquet", "no parquet", "no parquet file"),
        ("bad.csv", "a,b", "end in .txt, .jsonl or .parquet"),
    ],
)
def test_bad_files_get_a_sentence(tokenizer, tmp_path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=complaint):
        rows(tokenizer, tmp_path / name, chat_format="codefuse")


def test_missing_file(tokenizer, tmp_path) -> None:
    with pytest.raises(InputError, match=r"cannot be read|no file"):
        rows(tokenizer, tmp_path / "absent.txt")
