"""Rows as token ids, and which of them are learnt: CodeFuse-ChatML token for token as MFTCoder makes it, or the model's own template.

Learnt are the answers of the assistant, all of them, each with the token that ends it; of a plain text every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qtk.errors import InputError, listing
from qtk.finetuning.rows import TrainingRow, Turn
from qtk.models.tokenizer import ChatFormat, TextTokenizer

_MARKERS = {"system": "<s>system\n", "user": "<s>human\n", "assistant": "<s>bot\n"}
# No-break spaces, which MFTCoder writes as plain ones.
_SPACES = str.maketrans({"\u202f": " ", "\u00a0": " "})


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """ids: int32 [tokens]; learnt: bool [tokens], True where the token is to be predicted. where: of the row it comes from."""

    where: str
    ids: np.ndarray
    learnt: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Piece:
    """A text that is encoded by itself; end: the id of the end token follows it."""

    text: str
    learnt: bool
    end: bool = False


def require_end_token(tokenizer: TextTokenizer) -> int:
    """The id of the token that ends an answer. InputError where the model has none, so that it could not learn to stop."""
    end = tokenizer.end_id
    if end is None:
        raise InputError(
            f"{tokenizer.directory}: neither the tokenizer nor the configuration names an end token (eos_token), so a model "
            'could not learn to stop. Name it in tokenizer_config.json ("eos_token").'
        )
    return end


def encode_rows(
    tokenizer: TextTokenizer, rows: Sequence[TrainingRow], chat_format: ChatFormat, longest: int
) -> list[EncodedRow]:
    """Every row as token ids, in order. longest: where a text that may be cut is cut.

    InputError naming every row that the chat template refuses, and for a tokenizer without an end token.
    """
    end = require_end_token(tokenizer)
    encoded: list[EncodedRow] = []
    faults: list[str] = []
    for row in rows:
        try:
            encoded.append(_encode(tokenizer, row, chat_format, end, longest))
        except InputError as error:
            faults.append(f"{row.where}: {error}")
    if faults:
        raise InputError(f"{len(faults)} rows cannot be rendered:\n{listing(faults)}")
    return encoded


def _encode(tokenizer: TextTokenizer, row: TrainingRow, chat_format: ChatFormat, end: int, longest: int) -> EncodedRow:
    if row.cut:
        return _row(row.where, [(id, True) for id in (*tokenizer.bos_ids, *tokenizer.encode(row.text), end)][:longest])
    if chat_format == "codefuse":
        return _of_pieces(tokenizer, row.where, [], list(_codefuse_pieces(row)), end)
    if row.turns and chat_format == "model":
        return _of_template(tokenizer, row, end)
    text = row.text or "\n".join(turn.text for turn in row.turns)
    return _of_pieces(tokenizer, row.where, tokenizer.bos_ids, [_Piece(text, learnt=True, end=True)], end)


def _row(where: str, tokens: Sequence[tuple[int, bool]]) -> EncodedRow:
    ids, learnt = zip(*tokens, strict=True)
    return EncodedRow(where, np.array(ids, dtype=np.int32), np.array(learnt, dtype=bool))


def _of_pieces(
    tokenizer: TextTokenizer, where: str, bos: Sequence[int], pieces: Sequence[_Piece], end: int
) -> EncodedRow:
    # A model never predicts its own bos, but what comes after it.
    tokens = [(id, False) for id in bos]
    for piece, ids in zip(pieces, tokenizer.encode_batch([piece.text for piece in pieces]), strict=True):
        tokens += [(id, piece.learnt) for id in (*ids, *([end] if piece.end else []))]
    return _row(where, tokens)


def _codefuse_pieces(row: TrainingRow) -> Iterator[_Piece]:
    """MFTCoder's pieces, v0.3 to v0.5. Each is encoded by itself, because SentencePiece puts a space before every text."""
    if not row.turns:
        yield _Piece(_line(row.text), learnt=True, end=True)
    elif row.pair:
        *before, answer = row.turns
        yield _Piece("".join(_marked(turn) for turn in before) + _MARKERS["assistant"], learnt=False)
        yield _Piece(_line(answer.text), learnt=True, end=True)
    else:
        for turn in row.turns:
            if turn.role == "assistant":
                yield _Piece(_line(turn.text), learnt=True, end=True)
                yield _Piece("\n", learnt=False)
            else:
                yield _Piece(_marked(turn) + (_MARKERS["assistant"] if turn.role == "user" else ""), learnt=False)


def _marked(turn: Turn) -> str:
    return _MARKERS[turn.role] + _line(turn.text)


def _line(text: str) -> str:
    """A text as MFTCoder ends it: with one newline more, whatever it ends with."""
    return text.translate(_SPACES) + "\n"


def _of_template(tokenizer: TextTokenizer, row: TrainingRow, end: int) -> EncodedRow:
    """The whole conversation by the model's template, encoded once. Each answer is learnt from the first character after
    what the template writes to ask for it, up to the end token behind it."""
    messages = [{"role": turn.role, "content": turn.text} for turn in row.turns]
    text = tokenizer.render(messages, "model", generation_prompt=False)
    ids, starts = tokenizer.encode_with_starts(text)
    learnt = np.zeros(len(ids), dtype=bool)
    ends = {end, *tokenizer.eos_ids}
    last_ends = False
    for number, turn in enumerate(row.turns):
        if turn.role != "assistant":
            continue
        begin = _answer_begins(tokenizer, messages[:number], text)
        over = text.find(turn.text.strip(), begin)
        if over < 0:
            raise InputError("the chat template changes the text of an answer; use --chat-format codefuse")
        over += len(turn.text.strip())
        first, stop = np.searchsorted(starts, [begin, over])
        following = next((at for at in range(stop, len(ids)) if ids[at] in ends), None)
        # What lies between an answer and its end token is white space, or the template ends its answers without one.
        last_ends = following is not None and not text[over : starts[following]].strip()
        learnt[first : following + 1 if following is not None and last_ends else stop] = True
    if row.turns[-1].role == "assistant" and not last_ends:
        ids, learnt = [*ids, end], np.append(learnt, True)
    return EncodedRow(row.where, np.array(ids, dtype=np.int32), learnt)


def _answer_begins(tokenizer: TextTokenizer, before: list[dict[str, str]], text: str) -> int:
    """At which character of the rendered conversation the answer to the turns `before` begins."""
    asked = tokenizer.render(before, "model", generation_prompt=True)
    if not text.startswith(asked):
        raise InputError(
            "the chat template renders earlier turns in another way once later ones follow, so it does not say where an "
            "answer begins; give each answer a row of its own, or use --chat-format codefuse"
        )
    return len(asked)
