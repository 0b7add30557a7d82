"""How a job's processes are shut in at each level: the namespaces, the read-only root, and the rights that are dropped.

Standard library only. A jail is prepared once a worker, then closed round each job.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qtk.sandbox import kernel
from qtk.sandbox.job import JobLimits, Level
from qtk.sandbox.system_calls import restrict_calls

WORK = "/tmp/qtk-job"  # noqa: S108 - inside the jail, a private directory of each job
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
# Of /etc only what language runtimes read: no users' names, no secrets.
_CONFIGURATION = ("alternatives", "ld.so.cache", "ssl/openssl.cnf", "localtime", "R", "php", "racket", "julia")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_INSIDE_USER = 1000
SHARED_BYTES = 16 * 2**20  # of shared memory below /dev/shm


@dataclass(frozen=True)
class JailPlan:
    """What a worker is told: its level, its own scratch directory, the paths a program may read, its user id, and the paths
    below the readable ones that a program must not read."""

    level: Level
    scratch: str
    readable: tuple[str, ...]
    user: int
    hidden: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> JailPlan:
        readable, hidden = tuple(data["readable"]), tuple(data["hidden"])
        return JailPlan(data["level"], data["scratch"], readable, data["user"], hidden)


def readable_paths(extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Programs, libraries and this interpreter: what a program needs to run at all, and `extra`."""
    java = sorted(f"/etc/{name}" for name in os.listdir("/etc") if name.startswith("java"))
    paths = [*_SYSTEM, *(f"/etc/{name}" for name in _CONFIGURATION), *java, sys.base_prefix, sys.prefix, *extra]
    kept: list[str] = []
    for path in paths:
        below = any(path == other or path.startswith(other.rstrip("/") + "/") for other in kept)
        if os.path.exists(path) and not below:
            kept.append(path)
    return tuple(kept)


def hidden_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Where the paths really lie; only the outermost of them."""
    kept: list[str] = []
    for path in sorted({os.path.realpath(path) for path in paths}):
        if os.path.exists(path) and not (kept and path.startswith(kept[-1] + "/")):
            kept.append(path)
    return tuple(kept)


def readable_but(readable: Iterable[str], hidden: Sequence[str]) -> tuple[str, ...]:
    """The readable paths without the hidden ones: a folder that holds a hidden path is replaced by what it holds besides."""
    found: list[str] = []
    for path in readable:
        real = os.path.realpath(path)
        if any(real == other or real.startswith(other + "/") for other in hidden):
            continue
        if any(other.startswith(real.rstrip("/") + "/") for other in hidden):
            found += readable_but(sorted(entry.path for entry in os.scandir(real)), hidden)
        else:
            found.append(path)
    return tuple(found)


def folders_of(readable: Iterable[str], hidden: Sequence[str]) -> tuple[str, ...]:
    """The folders that `readable_but` has replaced: programs may list them, as Python does to find its modules."""
    reals = [os.path.realpath(path) for path in readable]
    above = {folder for path in hidden for folder in _parents(path)}
    return tuple(sorted(f for f in above if any(f == real or f.startswith(real + "/") for real in reals)))


def _parents(path: str) -> list[str]:
    """The folders that a path lies in, from the nearest to the root."""
    found = []
    while (above := os.path.dirname(path)) != path:
        found.append(above)
        path = above
    return found


class NamespaceJail:
    """A process space, network, mounts, IPC and host name of its own; a read-only root; another user's rights or none.

    As root the program gets an unused user id. Without root the same is built inside a user namespace. There the program
    keeps the caller's user id outside (seen as 1000 inside), but has no capability.
    """

    alone = True

    def __init__(self, plan: JailPlan) -> None:
        self.plan = plan
        self.root = os.path.join(plan.scratch, "root")
        if plan.level == "user-namespaces":
            uid, gid = os.getuid(), os.getgid()
            kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET)
            kernel.map_user(_INSIDE_USER, uid, gid)
        else:
            kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWNET)
        self._build_root()

    def _build_root(self) -> None:
        """The root that all jobs of this worker share, read-only; each job adds its own /tmp, /proc and /dev/shm."""
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        os.makedirs(self.root, exist_ok=True)
        kernel.mount("tmpfs", self.root, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
        for path in self.plan.readable:
            self._show(path)
        self._hide()
        for name in ("tmp", "proc", "dev/shm", "etc"):
            os.makedirs(f"{self.root}/{name}", exist_ok=True)
        for name in _DEVICES:
            self._touch(f"{self.root}/dev/{name}")
            kernel.mount(f"/dev/{name}", f"{self.root}/dev/{name}", None, kernel.MS_BIND)
        for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
            os.symlink(target, f"{self.root}/dev/{name}")
        for name, text in (
            ("passwd", f"nobody:x:{self._inside()}:{self._inside()}::/tmp/home:/bin/false\n"),
            ("group", f"nobody:x:{self._inside()}:\n"),
            ("hosts", "127.0.0.1 localhost\n"),
        ):
            with open(f"{self.root}/etc/{name}", "w", encoding="ascii") as stream:
                stream.write(text)

    def _inside(self) -> int:
        return self.plan.user if self.plan.level == "namespaces" else _INSIDE_USER

    def _show(self, path: str) -> None:
        target = self.root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            if not os.path.lexists(target):
                os.symlink(os.readlink(path), target)
            path = os.path.realpath(path)
            if any(path.startswith(shown + "/") for shown in self.plan.readable):
                return
            target = self.root + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            self._touch(target)
        kernel.bind_read_only(path, target)

    def _hide(self, below: str = "/") -> None:
        """Covers the hidden paths: a folder with an empty one, a file with an empty file."""
        for path in self.plan.hidden:
            target = self.root + path
            if not path.startswith(below) or not os.path.exists(target):
                continue
            if os.path.isdir(target):
                kernel.mount("tmpfs", target, "tmpfs", kernel.MS_NOSUID | kernel.MS_RDONLY, "size=4k,mode=555")
            else:
                kernel.mount("/dev/null", target, None, kernel.MS_BIND)

    @staticmethod
    def _touch(path: str) -> None:
        with open(path, "a", encoding="ascii"):
            pass

    def separate(self) -> None:
        """Before the fork of the supervisor, which becomes process 1 of a process space of its own."""
        kernel.unshare(kernel.CLONE_NEWPID)

    def close(self, limits: JobLimits) -> None:
        """In the supervisor: private temp directory and process list, then the new root."""
        kernel.die_with_parent()
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
        plain = kernel.MS_NOSUID | kernel.MS_NODEV
        disk = f"size={limits.disk_bytes},nr_inodes={limits.disk_files},mode=1777"
        kernel.mount("tmpfs", f"{self.root}/tmp", "tmpfs", plain, disk)  # noqa: S108
        for path in self.plan.readable:  # an environment below /tmp, which that mount has covered
            if path.startswith("/tmp/"):  # noqa: S108
                self._show(path)
        self._hide("/tmp/")  # noqa: S108
        shared = f"size={SHARED_BYTES},nr_inodes=64,mode=1777"
        kernel.mount("tmpfs", f"{self.root}/dev/shm", "tmpfs", plain, shared)  # noqa: S108
        kernel.mount("proc", f"{self.root}/proc", "proc", plain | kernel.MS_NOEXEC)
        kernel.mount("none", self.root, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)
        kernel.enter_root(self.root)
        os.mkdir("/tmp/home", 0o777)  # noqa: S108
        os.mkdir(WORK)
        os.chdir(WORK)
        if self.plan.level == "namespaces":
            for path in (WORK, "/tmp/home"):  # noqa: S108
                os.chown(path, self.plan.user, self.plan.user)

    def confine(self, *, signals: bool = False) -> None:
        """In the program's process: gives up all rights for good. signals: may still send signals, as the supervisor must."""
        if self.plan.level == "namespaces":
            os.setgroups([])
            os.setresgid(self.plan.user, self.plan.user, self.plan.user)
            os.setresuid(self.plan.user, self.plan.user, self.plan.user)
        kernel.drop_capabilities()
        kernel.forbid_new_privileges()
        if kernel.landlock_abi():  # a second wall; it also forbids mounts inside a user namespace of the program's own
            kernel.landlock_restrict(("/",), ("/tmp", "/dev"), signals=signals)  # noqa: S108
        restrict_calls()

    def leave(self) -> None:
        """Takes the shared root apart when the worker ends."""
        kernel.unmount(self.root)
        os.rmdir(self.root)


class DirectoryJail:
    """No namespaces: a fresh directory and the caller's user id. With Landlock nothing else can be read or written.

    The program still sees the process list and shares the process space. That is the weaker promise of these levels.
    """

    alone = False

    def __init__(self, plan: JailPlan) -> None:
        self.plan = plan
        self.work = os.path.join(plan.scratch, "work")
        self.readable = readable_but(plan.readable, plan.hidden)

    def separate(self) -> None:
        """Nothing to separate."""

    def close(self, limits: JobLimits) -> None:
        kernel.die_with_parent()
        kernel.adopt_orphans()
        kernel.hide_memory()
        os.mkdir(self.work, 0o700)
        os.chdir(self.work)

    def confine(self, *, signals: bool = False) -> None:
        kernel.die_with_parent()
        kernel.forbid_new_privileges()
        if self.plan.level == "landlock":
            kernel.drop_capabilities()  # as root: Landlock bounds files, not what else a capability opens
            devices = tuple(f"/dev/{name}" for name in _DEVICES)
            folders = folders_of(self.plan.readable, self.plan.hidden)
            kernel.landlock_restrict(self.readable, (self.work, *devices), folders, signals=signals)
        restrict_calls()

    def tidy(self) -> None:
        """Removes the job's directory, whatever modes and links it left there (links are never followed)."""

        def force(function: Any, path: str, error: object) -> None:
            with contextlib.suppress(OSError):
                os.chmod(os.path.dirname(path), 0o700)
                os.chmod(path, 0o700, follow_symlinks=False) if os.path.islink(path) else os.chmod(path, 0o700)
                function(path)

        if os.path.lexists(self.work):
            import shutil  # large, and not needed where there are namespaces

            shutil.rmtree(self.work, onerror=force)

    def leave(self) -> None:
        self.tidy()


class OuterJail:
    """For a supervisor that bubblewrap has shut in already."""

    alone = True

    def close(self, limits: JobLimits) -> None:
        kernel.hide_memory()
        os.makedirs(WORK, exist_ok=True)
        os.makedirs("/tmp/home", exist_ok=True)  # noqa: S108
        os.chdir(WORK)

    def confine(self, *, signals: bool = False) -> None:
        kernel.forbid_new_privileges()
        if kernel.landlock_abi():
            kernel.landlock_restrict(("/",), ("/tmp", "/dev"), signals=signals)  # noqa: S108
        restrict_calls()
