"""Token rows for calibration: plain texts packed into full rows, each rendered conversation a row of its own, right-padded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.sources import Sample, samples
from qtk.errors import InputError
from qtk.models.tokenizer import ChatFormat, TextTokenizer
from qtk.progress import warn

_MOST_TOKENS = 100_000_000  # of all rows, which are held in memory; a quantization reads about 100,000
_SHORTEST_ROW = 16  # tokens; a last row shorter than this says little and costs as much as a whole row


@dataclass(frozen=True)
class TokenRows:
    """tokens: [rows, seq_len] int64, right-padded with 0; lengths: [rows] int64, the real tokens of each row."""

    tokens: torch.Tensor
    lengths: torch.Tensor

    @property
    def token_count(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.lengths.sum())

    @property
    def padded(self) -> bool:
        return bool((self.lengths < self.tokens.shape[1]).any())

    def keep(self) -> torch.Tensor:
        """[rows, seq_len] bool: True at real tokens."""
        return torch.arange(self.tokens.shape[1])[None, :] < self.lengths[:, None]

    def pick(self, indices: list[int]) -> TokenRows:
        """Some of the rows."""
        return TokenRows(self.tokens[indices], self.lengths[indices])

    def split(self, first: int) -> tuple[TokenRows, TokenRows]:
        """The first rows, and the rest."""
        return (
            TokenRows(self.tokens[:first], self.lengths[:first]),
            TokenRows(self.tokens[first:], self.lengths[first:]),
        )


def calibration_rows(tokenizer: TextTokenizer, options: CalibrationOptions, seq_len: int) -> TokenRows:
    """At most `options.samples` rows of at most `seq_len` tokens. InputError when the source holds no text."""
    if options.samples * seq_len > _MOST_TOKENS:
        raise InputError(
            f"{options.samples:,} rows of {seq_len:,} tokens are more than {_MOST_TOKENS:,} tokens. Give fewer --samples."
        )
    rows = pack_rows(
        samples(options.calibration, options.seed), tokenizer, options.samples, seq_len, options.chat_format
    )
    if not rows:
        raise InputError(f"{options.calibration} holds no calibration text.")
    return as_token_rows(rows, seq_len)


def as_token_rows(rows: list[list[int]], seq_len: int) -> TokenRows:
    """Lists of token ids, none longer than seq_len, as padded TokenRows."""
    tokens = torch.zeros(len(rows), seq_len, dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
    return TokenRows(tokens, torch.tensor([len(row) for row in rows]))


def _first_tokens(tokenizer: TextTokenizer, text: str, count: int) -> list[int]:
    """The first tokens of a text, at least `count` where it has as many."""
    found: list[int] = []
    for ids in tokenizer.encode_in_pieces(text):
        found += ids
        if len(found) >= count:
            break
    return found


def pack_rows(
    source: Iterable[Sample], tokenizer: TextTokenizer, count: int, seq_len: int, chat_format: ChatFormat
) -> list[list[int]]:
    """Up to `count` rows. Texts are laid end to end and cut into rows, each with the tokenizer's bos in front. So are
    conversations with the chat format "none"; with another format each is a row. A conversation longer than a row is cut at
    the row's end, and a note says how many were."""
    bos = tokenizer.bos_ids
    room = seq_len - len(bos)
    if room < max(1, seq_len // 2):
        raise InputError(
            f"The tokenizer puts {len(bos)} tokens in front of every text, so rows of {seq_len} tokens hold too little text. "
            "Give a larger --seq-len."
        )
    rows: list[list[int]] = []
    buffer: list[int] = []
    conversations = cut = 0
    for sample in source:
        if sample.messages and chat_format != "none":
            text = tokenizer.render(sample.messages, chat_format, generation_prompt=False)
            ids = _first_tokens(tokenizer, text, seq_len + 1)
            if ids:
                rows.append(ids[:seq_len])
                conversations, cut = conversations + 1, cut + (len(ids) > seq_len)
        else:
            text = tokenizer.render(sample.messages, "none") if sample.messages else sample.text
            for ids in tokenizer.encode_in_pieces(text):
                buffer += ids
                full = min(len(buffer) // room, count - len(rows))
                rows += [bos + buffer[start : start + room] for start in range(0, full * room, room)]
                buffer = buffer[full * room :]
                if len(rows) >= count:
                    break
        if len(rows) >= count:
            break
    if cut:
        warn(
            f"{cut} of {conversations} conversations are longer than a row of {seq_len} tokens and were cut (--seq-len)."
        )
    if len(rows) >= count:
        return rows[:count]
    if len(buffer) >= min(_SHORTEST_ROW, room) or (buffer and not rows):
        rows.append(bos + buffer)
    return rows
