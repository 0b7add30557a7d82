"""Log probabilities of tokens, as the model gives them: before temperature and top_p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenLogprob:
    """ln of the probability of `token`, in nats, and the most likely tokens in that place with theirs, best first."""

    token: int
    value: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: np.ndarray, token: int, top: int) -> TokenLogprob:
    """logits [vocab]; top: how many of the most likely tokens are named."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    logs = wide - np.log(np.exp(wide).sum())
    best = np.argpartition(-logs, top - 1)[:top] if top else np.empty(0, np.int64)
    best = best[np.argsort(-logs[best], kind="stable")]
    return TokenLogprob(token, float(logs[token]), tuple((int(i), float(logs[i])) for i in best))
