"""The Linux calls of a sandbox that Python's `os` does not have: namespaces, mounts, capabilities, Landlock.

Standard library only: this runs inside the sandbox's own small process. Every failure is an OSError that names the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 1, 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
# Numbers that are the same on every architecture (the calls are younger than the unified table).
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_CLOEXEC = 1, 1, 5, 0o2000000
_LIBC = ctypes.CDLL(None, use_errno=True)
for _name in ("unshare", "setns", "mount", "umount2", "syscall", "prctl", "capset", "socketpair"):
    getattr(_LIBC, _name)  # looked up now, and not again in each process that is forked


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """New namespaces for this process (CLONE_NEWPID: for its next child)."""
    _check(_LIBC.unshare(flags), "unshare")


def enter_process_space(handle: int) -> None:
    """This process's next children are made in the process space that the open /proc/PID/ns/pid file names."""
    _check(_LIBC.setns(handle, CLONE_NEWPID), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = kind.encode() if kind else None
    call = f"mount {target}"
    _check(_LIBC.mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), options.encode()), call)


def bind_read_only(source: str, target: str) -> None:
    """`source` and all mounts below it at `target`, read-only throughout (Linux 5.12)."""
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    call = f"mount_setattr {target}"
    result = _LIBC.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR), _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(32)
    )
    _check(result, call)


def enter_root(directory: str) -> None:
    """Makes `directory` (a mount point) the root of this mount namespace and drops the old root from it."""
    os.chdir(directory)
    _check(_LIBC.syscall(ctypes.c_long(_pivot_root_number()), b".", b"."), "pivot_root")
    _check(_LIBC.umount2(b".", MNT_DETACH), "umount old root")
    os.chdir("/")


def unmount(directory: str) -> None:
    """Takes a mount and all below it out of this mount namespace."""
    _check(_LIBC.umount2(directory.encode(), MNT_DETACH), f"umount {directory}")


def _pivot_root_number() -> int:
    return {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}[os.uname().machine]


def map_user(inside: int, uid: int, gid: int) -> None:
    """In a fresh user namespace: `uid` and `gid` outside are seen as `inside`."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{inside} {uid} 1"), ("gid_map", f"{inside} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)


def connected_pair(*, messages: bool = False) -> tuple[int, int]:
    """The two ends of a connection, as descriptors. messages: what one write sends, one read gets.

    As socket.socketpair, without the module `socket`: whatever a worker has loaded makes each of its forks slower.
    """
    ends = (ctypes.c_int * 2)()
    kind = (_SOCK_SEQPACKET if messages else _SOCK_STREAM) | _SOCK_CLOEXEC
    _check(_LIBC.socketpair(_AF_UNIX, kind, 0, ends), "socketpair")
    return ends[0], ends[1]


def die_with_parent() -> None:
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl PDEATHSIG")


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process instead of the system's init."""
    _check(_LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl CHILD_SUBREAPER")


def hide_memory() -> None:
    """Keeps processes of the same user from tracing this process and from reading its memory and environment."""
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl DUMPABLE")


def rank_for_memory_killer(rank: int) -> None:
    """From -1000 (never) to 1000 (first): when memory is used up, whether the kernel ends this process and its children."""
    with contextlib.suppress(OSError):
        file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(file, b"%d" % rank)
        os.close(file)


def forbid_new_privileges() -> None:
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")


def set_process_option(option: int, value: int, argument: object, call: str) -> None:
    """prctl with an argument by reference. `call` names it in the OSError."""
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), argument, 0, 0), call)


def try_call(number: int, *arguments: int | None) -> int:
    """A system call by its number; its result, negative where it failed."""
    return int(_LIBC.syscall(ctypes.c_long(number), *arguments))


def drop_capabilities() -> None:
    """Empties the effective, permitted and inheritable sets."""
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_LIBC.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0)), "capset")


# Landlock access rights by the ABI that introduced them (include/uapi/linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_BIND_CONNECT, _SCOPE_ABSTRACT, _SCOPE_SIGNAL = 3, 1, 2


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    version = _LIBC.syscall(ctypes.c_long(_SYS_LANDLOCK_CREATE), None, ctypes.c_size_t(0), 1)
    return max(0, int(version))


def landlock_restrict(
    readable: Iterable[str], writable: Iterable[str], listed: Iterable[str] = (), *, signals: bool = False
) -> None:
    """From here on this process reads and runs only below `readable` and `writable`, and writes only below `writable`. It may
    list the folders `listed`, and those below them.

    Mounting is forbidden as well; TCP from ABI 4 on; abstract sockets and (unless allowed) signals to the outside from ABI 6
    on. Paths that do not exist are left out. Needs forbid_new_privileges() first.
    """
    abi = landlock_abi()
    if abi == 0:
        raise OSError(38, "landlock: not in this kernel")
    files = _ALL_FILES[min(abi, 5)]
    attributes = struct.pack("Q", files)
    if abi >= 4:
        attributes += struct.pack("Q", _TCP_BIND_CONNECT)
    if abi >= 6:
        attributes += struct.pack("Q", _SCOPE_ABSTRACT if signals else _SCOPE_ABSTRACT | _SCOPE_SIGNAL)
    size = ctypes.c_size_t(len(attributes))
    ruleset = _check(_LIBC.syscall(ctypes.c_long(_SYS_LANDLOCK_CREATE), attributes, size, 0), "landlock_create_ruleset")
    try:
        for paths, access in ((readable, _READ), (writable, files), (listed, _READ_DIR)):
            for path in paths:
                _allow(ruleset, path, access & files)
        _check(_LIBC.syscall(ctypes.c_long(_SYS_LANDLOCK_RESTRICT), ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            access &= _FILE_ONLY
        rule = struct.pack("=Qi", access, fd)
        _check(_LIBC.syscall(ctypes.c_long(_SYS_LANDLOCK_ADD), ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(fd)
