"""Log-probabilities of given texts, from a session's logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qtk.bench.accuracy.task import Task
from qtk.engines.sessions.session import DecoderSession
from qtk.models.tokenizer import TextTokenizer


def prompt_and_solution(tokenizer: TextTokenizer, task: Task) -> tuple[list[int], int]:
    """Token ids of prompt + reference encoded as one text, and where the reference begins.

    A token that lies across the border counts as one of the reference.
    """
    prompt = tokenizer.encode(task.prompt, special=False)
    ids = tokenizer.encode(task.prompt + task.reference, special=False)
    start = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids)))
    return [*tokenizer.bos_ids, *ids], len(tokenizer.bos_ids) + start


def scored_tokens(
    session: DecoderSession, texts: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of a text, log-probabilities, is likeliest) for its tokens from `start` (1 or more) on, as they are done.

    texts: token ids of each; starts: one a text. Natural logarithms, float64 [tokens]; is likeliest: bool [tokens],
    whether greedy decoding would have taken the token. Texts of like length run together, and texts that differ in their
    last token only (the letters of a question) share one row.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        if len(text) > 1:
            rows.setdefault(tuple(text[:-1]), []).append(number)
        else:
            yield number, np.empty(0), np.empty(0, bool)
    order = sorted(rows, key=len)
    for begin in range(0, len(order), session.limits.max_batch):
        batch = order[begin : begin + session.limits.max_batch]
        # The positions of the logits to read, and the tokens to read there: first those that all texts of a row share,
        # then the last token of each.
        first = [min(starts[number] for number in rows[row]) for row in batch]
        places = [
            np.array([*range(f - 1, len(r) - 1), *[len(r) - 1] * len(rows[r])])
            for f, r in zip(first, batch, strict=True)
        ]
        tokens = [np.array([*row[f:], *(texts[n][-1] for n in rows[row])]) for f, row in zip(first, batch, strict=True)]
        values = [np.empty(len(place)) for place in places]
        likeliest = [np.empty(len(place), bool) for place in places]
        for start, logits in session.logit_chunks(batch):
            for row, place in enumerate(places):
                here = (place >= start) & (place < start + logits.shape[1])
                wanted = logits[row, place[here] - start]
                values[row][here] = log_probabilities(wanted, tokens[row][here])
                likeliest[row][here] = wanted.argmax(axis=-1) == tokens[row][here]
        for row, ids in enumerate(batch):
            shared = len(ids) - first[row]
            for number_in_row, number in enumerate(rows[ids]):
                mine = [*range(starts[number] - first[row], shared), shared + number_in_row]
                yield number, values[row][mine], likeliest[row][mine]


def log_probabilities(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log softmax(logits)[targets]: logits [tokens, vocab], targets [tokens] -> [tokens] float64."""
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    # The exponentials are at most 1 each and keep the logits' precision; their sum, of many terms, is taken in double.
    total = np.log(np.exp(logits - top).sum(axis=-1, dtype=np.float64)) + top[:, 0]
    return logits[np.arange(len(targets)), targets] - total
