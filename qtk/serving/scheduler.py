"""The thread that owns the engine: takes works from the queue, runs them, and tells the server's thread what came of them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

from qtk.serving.refusals import RefusedRequest
from qtk.serving.runners import Runner
from qtk.serving.waiting import WaitingWorks
from qtk.serving.work import ChoiceWork, Event, TokenMade, WorkFailed

Post = Callable[[Callable[[], None]], object]
# Tokens for which nobody waits are told so many at once: each time, the server's thread interrupts the engine's.
_TOGETHER = 32


class Scheduler:
    """A bounded queue before one engine. `submit` and `drain` may be called from any thread."""

    def __init__(self, runner: Runner, max_waiting: int, post: Post, on_failure: Callable[[], None]) -> None:
        """post: runs a function in the server's thread, soon. on_failure: called when the engine has failed, after every
        work was told; `failure` then holds what it raised."""
        self._runner, self._max_waiting, self._post, self._on_failure = runner, max_waiting, post, on_failure
        self._waiting = WaitingWorks()
        self._changed = threading.Condition()
        self._draining = False
        self._kept: list[tuple[ChoiceWork, Event]] = []  # tokens for which nobody waits; of the engine's thread
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="qtk-engine")
        self._thread.start()

    @property
    def running(self) -> int:
        """Works in the rows of the engine."""
        return len(self._runner.works)

    @property
    def waiting(self) -> int:
        """Works in the queue."""
        with self._changed:
            return len(self._waiting)

    def submit(self, works: Sequence[ChoiceWork]) -> None:
        """Queues the works of one request, all or none. RefusedRequest: 429 for a full queue, 503 for a server that stops."""
        with self._changed:
            if self._draining:
                raise RefusedRequest(503, "The server is stopping.", headers={"Retry-After": "5"})
            self._waiting.drop_cancelled()
            free = max(0, self._runner.capacity - len(self._runner.works))
            if len(self._waiting) + len(works) > self._max_waiting + free:
                raise RefusedRequest(
                    429,
                    f"The queue is full: {len(self._waiting)} texts wait, {self._max_waiting} may. Try again soon.",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            for work in works:
                self._waiting.add(work)
            self._changed.notify()

    def drain(self) -> None:
        """Takes nothing more: works that wait fail with 503, those in rows are finished, and then the thread ends."""
        with self._changed:
            self._draining = True
            left = self._take_all()
            self._changed.notify()
        self._post(functools.partial(_tell_all, [(work, WorkFailed("The server is stopping.", 503)) for work in left]))

    def join(self) -> None:
        """Waits until the thread has ended, after `drain`."""
        self._thread.join()

    def close(self) -> None:
        """Gives up what runs too, and waits until the thread has ended."""
        self.drain()
        for work in self._runner.works:
            work.cancel()
        self.join()

    def _take_all(self) -> list[ChoiceWork]:
        return [self._waiting.take() for _ in range(len(self._waiting))]

    def _serve(self) -> None:
        try:
            while self._admit():
                self._runner.step(self._tell)
        except BaseException as error:
            with self._changed:
                self._draining, self.failure = True, error
                left = [*self._runner.works, *self._take_all()]
            self._tell([(work, WorkFailed(f"The engine failed: {error}", 500)) for work in left])
            self._post(self._on_failure)

    def _admit(self) -> bool:
        """Fills free rows from the queue; waits while there is nothing to do. False when nothing will come."""
        with self._changed:
            self._waiting.drop_cancelled()
            while not len(self._waiting) and not self._runner.works:
                if self._draining:
                    return False
                self._changed.wait()
                self._waiting.drop_cancelled()
            while len(self._waiting) and len(self._runner.works) < self._runner.capacity:
                self._runner.admit(self._waiting.take())
        return True

    def _tell(self, told: list[tuple[ChoiceWork, Event]]) -> None:
        """From the engine's thread."""
        self._kept += told
        if len(self._kept) >= _TOGETHER or any(work.waits or not isinstance(event, TokenMade) for work, event in told):
            self._post(functools.partial(_tell_all, self._kept))
            self._kept = []


def _tell_all(told: Sequence[tuple[ChoiceWork, Event]]) -> None:
    for work, event in told:
        work.tell(work, event)
