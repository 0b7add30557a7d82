"""How the engine's thread hands its tokens over."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

import pytest

from qtk.engines.sessions.decoding import Decoding
from qtk.serving.scheduler import Scheduler
from qtk.serving.work import ChoiceWork, Event, Tell, TokenMade, WorkEnded

TOKENS = 100


class OneTokenAStep:
    """Gives a work's tokens one by one."""

    capacity = 1
    gives_logprobs = False

    def __init__(self) -> None:
        self.works: list[ChoiceWork] = []
        self._made = 0

    def admit(self, work: ChoiceWork) -> None:
        self.works.append(work)

    def step(self, tell: Tell) -> None:
        [work] = self.works
        told: list[tuple[ChoiceWork, Event]] = [(work, TokenMade(self._made, None))]
        self._made += 1
        if self._made == TOKENS:
            self.works.clear()
            told.append((work, WorkEnded("length")))
        tell(told)


@pytest.mark.parametrize(("waits", "most"), [(True, TOKENS), (False, 4)])
def test_tokens_for_which_nobody_waits_are_told_together(waits: bool, most: int) -> None:
    """All of them, in order; each time costs the engine an interruption."""
    posted: queue.Queue[Callable[[], None]] = queue.Queue()
    heard: list[Event] = []
    scheduler = Scheduler(OneTokenAStep(), 1, posted.put, lambda: None)
    try:
        scheduler.submit([
            ChoiceWork((1,), TOKENS, Decoding(), lambda _, event: heard.append(event), waits=waits)
        ])  # fmt: skip
        count = 0
        while not (heard and isinstance(heard[-1], WorkEnded)):
            posted.get(timeout=60)()
            count += 1
    finally:
        scheduler.close()
    assert tokens(heard) == list(range(TOKENS))
    assert count <= most


def tokens(heard: Sequence[Event]) -> list[int]:
    return [event.token for event in heard if isinstance(event, TokenMade)]
