"""The most memory that this process held while something ran."""

from __future__ import annotations

import os
import resource
import threading

import psutil


class PeakMemory:
    """Peak resident memory of this process while a `with` block runs, in bytes; `above`: the part beyond what it held before.

    A thread samples /proc/self/statm every 5 ms, so that a peak inside one long native call is seen as well.
    """

    def __init__(self, interval: float = 0.005) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self.start_bytes = self.peak_bytes = resident_bytes()

    @property
    def above(self) -> int:
        return self.peak_bytes - self.start_bytes

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())

    def __enter__(self) -> PeakMemory:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, resident_bytes())


def resident_bytes() -> int:
    """Bytes of memory that this process holds now."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return psutil.Process().memory_info().rss


def most_resident_bytes() -> int:
    """The most that this process held so far, as Linux counts it. Not getrusage's ru_maxrss, which begins with what the process held
    that started this one; that is taken where there is no other."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
