"""The works that wait for a row: clients take turns, and each client's works keep their order."""

from __future__ import annotations

from collections import OrderedDict, deque

from qtk.serving.work import ChoiceWork


class WaitingWorks:
    """A fair queue. Who sends a hundred requests does not keep the next client waiting for all of them."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[ChoiceWork]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def add(self, work: ChoiceWork) -> None:
        self._lines.setdefault(work.client, deque()).append(work)

    def take(self) -> ChoiceWork:
        """The next work; its client goes to the end of the clients."""
        client, line = self._lines.popitem(last=False)
        work = line.popleft()
        if line:
            self._lines[client] = line
        return work

    def drop_cancelled(self) -> None:
        """Forgets the works that nobody wants any more."""
        for client, line in list(self._lines.items()):
            kept = deque(work for work in line if not work.cancelled)
            if kept:
                self._lines[client] = kept
            else:
                del self._lines[client]
