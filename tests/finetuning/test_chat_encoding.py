"""Token ids and what is learnt of them, against expectations written by hand: a token is a character here, <s> and </s> are one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.word_tokenizer import write_word_tokenizer

from qtk.errors import InputError
from qtk.finetuning.chat_encoding import EncodedRow, encode_rows
from qtk.finetuning.rows import TrainingRow, parse_row
from qtk.models.tokenizer import ChatFormat, TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny) -> TextTokenizer:
    return TextTokenizer(tiny("llama"))


def encode(
    tokenizer: TextTokenizer, row: object, chat_format: ChatFormat = "codefuse", longest: int = 999
) -> EncodedRow:
    made = row if isinstance(row, TrainingRow) else parse_row(row, "f, line 1")
    return encode_rows(tokenizer, [made], chat_format, longest)[0]


def shown(tokenizer: TextTokenizer, row: EncodedRow) -> str:
    """The text with what is learnt between braces."""
    parts, inside = [], False
    for id, learnt in zip(row.ids.tolist(), row.learnt.tolist(), strict=True):
        parts += (["{"] if learnt and not inside else ["}"] if inside and not learnt else []) + [
            tokenizer.decode([id], skip_special=False)
        ]
        inside = learnt
    return "".join(parts) + ("}" if inside else "")


ROUNDS = [
    {"role": "system", "content": "S"},
    {"role": "human", "content": "Q"},
    {"role": "bot", "content": "A\n"},
    {"role": "human", "content": "R\u00a0"},
    {"role": "bot", "content": "B"},
]


def test_codefuse_learns_every_answer_with_its_newline_and_end_token(tokenizer: TextTokenizer) -> None:
    assert shown(tokenizer, encode(tokenizer, {"chat_rounds": ROUNDS})) == (
        "<s>system\nS\n<s>human\nQ\n<s>bot\n{A\n\n</s>}\n<s>human\nR \n<s>bot\n{B\n</s>}\n"
    )


def test_codefuse_pairs_have_no_newline_at_the_end(tokenizer: TextTokenizer) -> None:
    pair = {"prompt": "Q", "answer": "A", "system": "S"}
    assert shown(tokenizer, encode(tokenizer, pair)) == "<s>system\nS\n<s>human\nQ\n<s>bot\n{A\n</s>}"


def test_codefuse_texts_and_an_open_question(tokenizer: TextTokenizer) -> None:
    assert shown(tokenizer, encode(tokenizer, {"text": "T"})) == "{T\n</s>}"
    open_end = shown(tokenizer, encode(tokenizer, {"chat_rounds": ROUNDS[1:4]}))
    assert open_end == "<s>human\nQ\n<s>bot\n{A\n\n</s>}\n<s>human\nR \n<s>bot\n"


def test_codefuse_pieces_are_encoded_each_by_itself(tmp_path: Path) -> None:
    """A SentencePiece tokenizer puts a space before every text, so before every piece: not only before the first."""
    write_word_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    own = TextTokenizer(tmp_path)
    row = encode(own, {"chat_rounds": [{"role": "user", "content": "q"}, {"role": "gpt", "content": "a"}]})
    pieces = ["<s>human\nq\n<s>bot\n", "a\n", "\n"]
    first, answer, last = (own.encode(piece) for piece in pieces)
    assert row.ids.tolist() == [*first, *answer, 2, *last]
    assert row.ids.tolist() != own.encode("".join(pieces[:2]) + "</s>\n")
    assert row.learnt.tolist() == [False] * len(first) + [True] * (len(answer) + 1) + [False] * len(last)


def test_the_models_template_learns_every_answer_with_its_end_token(tokenizer: TextTokenizer) -> None:
    rounds = [*ROUNDS[:3], {"role": "human", "content": "R"}, ROUNDS[4]]
    assert shown(tokenizer, encode(tokenizer, {"chat_rounds": rounds}, "model")) == (
        "<s>system\nS</s><s>user\nQ</s><s>assistant\n{A\n</s>}<s>user\nR</s><s>assistant\n{B</s>}"
    )


def test_a_template_without_an_end_token_gets_one(tiny, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny("llama") / "tokenizer.json").read_bytes())
    config = (
        '{"eos_token": "</s>", "chat_template": "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}'
        '{% if add_generation_prompt %}[assistant]{% endif %}"}'
    )
    (tmp_path / "tokenizer_config.json").write_text(config)
    own = TextTokenizer(tmp_path)
    assert shown(own, encode(own, {"prompt": "Q", "answer": "A"}, "model")) == "[user]Q;[assistant]{A};{</s>}"


def test_a_template_that_rewrites_earlier_turns_is_refused_by_row(tiny, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny("llama") / "tokenizer.json").read_bytes())
    template = "{{ messages | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": "</s>", "chat_template": "{template}"}}')
    with pytest.raises(InputError, match="f, line 1: the chat template renders earlier turns in another way"):
        encode(TextTokenizer(tmp_path), {"chat_rounds": ROUNDS}, "model")


def test_plain_text_is_learnt_whole(tokenizer: TextTokenizer) -> None:
    assert shown(tokenizer, encode(tokenizer, {"prompt": "Q", "answer": "A"}, "none")) == "{Q\nA</s>}"
    assert shown(tokenizer, encode(tokenizer, {"text": "T"}, "model")) == "{T</s>}"


def test_a_text_that_may_be_cut_is_cut(tokenizer: TextTokenizer) -> None:
    row = TrainingRow(where="m.py", text="abcdef", cut=True)
    assert shown(tokenizer, encode(tokenizer, row, "model", longest=4)) == "{abcd}"


def test_a_tokenizer_without_an_end_token_is_refused(tiny, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny("llama") / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="names an end token"):
        encode(TextTokenizer(tmp_path), {"prompt": "Q", "answer": "A"})
