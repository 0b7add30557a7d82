"""What this machine is and can do, detected and not assumed: cores, memory, GPUs, the dtype of fast matrix products."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from qtk.errors import InputError

if TYPE_CHECKING:
    import torch

# Numbers of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# How many times as long as float32 bfloat16 takes in a small product on a processor without kernels for it.
_HOPELESS = 3.0


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver reports it. `memory_bytes` total; `compute_capability` like "8.6"."""

    name: str
    memory_bytes: int
    compute_capability: str
    driver: str


@dataclass(frozen=True)
class Machine:
    """The machine as recorded in a manifest. Memory in bytes."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    gpus: tuple[Gpu, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def processor_name() -> str:
    """The processor's model name from /proc/cpuinfo, else what the platform module says."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver lists; empty without a driver. Asks nvidia-smi, so a CUDA library is not needed."""
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    listed = []
    for line in answer.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[1].isdigit():
            name, mebibytes, capability, driver = fields
            listed.append(Gpu(name, int(mebibytes) * 2**20, capability, driver))
    return tuple(listed)


def usable_cores() -> int:
    """Cores this process may run on (respects affinity and container masks)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def machine() -> Machine:
    """This machine, examined once a process."""
    return Machine(
        processor=processor_name(),
        cores=usable_cores(),
        memory_bytes=total_memory(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        gpus=gpus(),
    )


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions; absent ones are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def total_memory() -> int:
    """Bytes of memory that this process may use at most: the machine's, or what its control groups allow if that is less.

    In a container the kernel reports the whole machine's memory, but kills the process at the container's limit.
    """
    return min([psutil.virtual_memory().total, *(limit for limit, _ in cgroup_memory())])


def available_memory() -> int:
    """Bytes of memory that can be taken now without swapping or passing a control group's limit."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in cgroup_memory())])


def cgroup_memory(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every control group above this process that has a limit, version 1 or 2. `used` leaves out
    what the kernel can drop (the cache of files)."""
    limits = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        names = names if controllers else ("memory.max", "memory.current", "inactive_file")
        # Inside a container the path may be the host's, while what is mounted is the container's own group.
        inner = base / path.strip().lstrip("/")
        for place in dict.fromkeys([inner, *(p for p in inner.parents if p.is_relative_to(base)), base]):
            limit, used = _number(place / names[0]), _number(place / names[1])
            if limit is not None and limit < 2**60:  # version 1 writes a number near 2**63 for "no limit"
                cache = next((int(x.split()[1]) for x in _lines(place / "memory.stat") if x.split()[0] == names[2]), 0)
                limits.append((limit, max(0, (used or 0) - cache)))
    return limits


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The number that a file holds; None for other content ("max") and where there is no such file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def keep_freed_memory() -> None:
    """Tells glibc to reuse the memory of freed tensors of up to 32 MB instead of returning it to the kernel.

    Returned pages have to be zeroed and mapped again at the next use, which took an eighth of the time of a quantization.
    Does nothing with another C library.
    """
    _set_malloc(threshold=1 << 25, trim=1 << 30)  # the highest threshold that glibc takes


def return_freed_memory() -> None:
    """Tells glibc to return the memory of freed tensors of 1 MB and more to the kernel: for work that keeps its large buffers,
    where what is left between others in the heap would grow with the number of tensors. Does nothing with another C library."""
    _set_malloc(threshold=1 << 20, trim=1 << 20)


def _set_malloc(*, threshold: int, trim: int) -> None:
    """threshold: bytes from which on an allocation is mapped by itself; trim: bytes at the heap's end that are kept."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, threshold)
    mallopt(_M_TRIM_THRESHOLD, trim)


def threads_for(threads: int | None) -> int:
    """How many threads to compute with: `threads`, else OMP_NUM_THREADS, else every usable core. Never more than those."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads or (int(wanted) if wanted.isdigit() and int(wanted) else usable_cores()), usable_cores())


@dataclass(frozen=True)
class ThreadChoice:
    """How many threads to compute with. busy: cores that other processes keep busy, where that lowered the number."""

    threads: int
    busy: float = 0.0

    @property
    def sentence(self) -> str | None:
        """What to say of a number that was lowered."""
        if not self.busy:
            return None
        return (
            f"Other processes keep {self.busy:.1f} of {usable_cores()} cores busy, so this one computes with "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}: threads that wait for each other take longer. "
            "--threads decides otherwise."
        )


def unhindered_threads(threads: int | None, busy: Callable[[], float] | None = None) -> ThreadChoice:
    """`threads_for(threads)`, but no more than there are cores that nobody else keeps busy, unless `threads` or
    OMP_NUM_THREADS says how many. busy: tells how many cores others keep busy (None: `busy_cores`)."""
    count = threads_for(threads)
    if threads or os.environ.get("OMP_NUM_THREADS") or count == 1:
        return ThreadChoice(count)
    others = (busy or busy_cores)()
    free = max(1, usable_cores() - round(others))
    return ThreadChoice(free, others) if free < count else ThreadChoice(count)


def busy_cores(seconds: float = 0.3) -> float:
    """How many cores other processes kept busy in the last moment, by the system's own count."""

    def busy() -> float:
        own, everyone = os.times(), psutil.cpu_times()
        working = everyone.user + everyone.system + getattr(everyone, "nice", 0.0) + getattr(everyone, "steal", 0.0)
        return working - own.user - own.system

    before, start = busy(), time.monotonic()
    time.sleep(seconds)
    return max(0.0, (busy() - before) / (time.monotonic() - start))


def limit_threads(threads: int | None) -> int:
    """Limits torch to `threads_for(threads)` threads and returns that number."""
    import torch

    count = threads_for(threads)
    torch.set_num_threads(count)
    return count


def chosen_compute_dtype() -> torch.dtype | None:
    """The dtype that the environment variable QTK_COMPUTE_DTYPE names: float32, bfloat16, or None for auto (the default).

    For tests of one kind of processor on the other, and for the same bits from both. InputError for another value.
    """
    import torch

    name = os.environ.get("QTK_COMPUTE_DTYPE") or "auto"
    dtypes = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise InputError(f"QTK_COMPUTE_DTYPE is {name!r}; it takes {', '.join(dtypes)}.")
    return dtypes[name]


def fast_matmul_dtype() -> torch.dtype:
    """torch.bfloat16 where this CPU multiplies bf16 matrices clearly faster than fp32 ones, else torch.float32.

    QTK_COMPUTE_DTYPE=float32 or bfloat16 decides instead (`chosen_compute_dtype`).
    """
    return chosen_compute_dtype() or _timed_matmul_dtype()


@functools.cache
def _timed_matmul_dtype() -> torch.dtype:
    """Timed once a process (about 0.1 s), because flags in /proc/cpuinfo do not say whether the installed torch has kernels
    for them. The two dtypes alternate on one thread, whose processor time counts and not the clock, and the best of several
    timings is taken, so that the answer is the same on a busy machine: the dtype decides the result to the last bit.

    Without kernels for bfloat16 a large product takes a second, so small products are timed first: where bfloat16 takes
    several times as long in them, large ones cannot turn that round.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small = _matmul_seconds(192)
        if small[torch.bfloat16] > _HOPELESS * small[torch.float32]:
            return torch.float32
        large = _matmul_seconds(768)
    finally:
        torch.set_num_threads(threads)
    return torch.bfloat16 if large[torch.bfloat16] < 0.7 * large[torch.float32] else torch.float32


def _matmul_seconds(size: int) -> dict[torch.dtype, float]:
    """The least processor time of this thread for a product of two square matrices in bfloat16 and in float32, in turn."""
    import torch

    best = dict.fromkeys((torch.bfloat16, torch.float32), float("inf"))
    for _ in range(8):
        for dtype in best:
            a = torch.ones(size, size, dtype=dtype)
            start = time.thread_time()
            a @ a
            best[dtype] = min(best[dtype], time.thread_time() - start)
    return best
