"""System calls that a program in a sandbox may not make: a seccomp filter, the same at every level.

What is refused is outside of every namespace (kernel keyrings, virtual sockets to the host), takes memory that no limit on
the process counts (memfd, System V segments and queues), opens sockets and files behind the filter's back (io_uring), or looks
into another process, such as that of an answer's tests (ptrace and its like).
Most calls fail with ENOSYS, as on a kernel without them, so that runtimes fall back to what they do there.
Standard library only. Source: the kernel's seccomp_filter and bpf_common headers.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from dataclasses import dataclass

from qtk.sandbox import kernel

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
# Classic BPF: load a word of the call's record, jump if equal, jump if greater or equal, return a constant.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data (little-endian: low word first)
_X32 = 0x40000000  # the bit that marks the calls of x86's x32 form
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_JOIN_SESSION_KEYRING = 1
# io_uring came after the architectures agreed on numbers.
_IO_URING_SETUP = 425


@dataclass(frozen=True)
class CallNumbers:
    """Numbers of one architecture. `audit` is what the kernel calls it (linux/audit.h)."""

    audit: int
    socket: int
    socketpair: int
    keyctl: int
    absent: tuple[int, ...]
    """add_key, request_key, keyctl; memfd_create, memfd_secret; shmget, msgget, semget; ptrace, process_vm_readv and
    process_vm_writev, kcmp, pidfd_getfd: answered with ENOSYS."""


_NUMBERS = {
    "x86_64": CallNumbers(0xC000003E, 41, 53, 250, (248, 249, 250, 319, 447, 29, 68, 64, 101, 310, 311, 312, 438)),
    "aarch64": CallNumbers(
        0xC00000B7, 198, 199, 219, (217, 218, 219, 279, 447, 194, 186, 190, 117, 270, 271, 272, 438)
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


@functools.cache  # a worker makes it once, for all that it forks
def filter_program(numbers: CallNumbers) -> bytes:
    """The filter as BPF instructions of 8 bytes: a call of another architecture ends the process, those that are listed fail,
    sockets are of four families only, and all others are let through."""
    absent = (*numbers.absent, _IO_URING_SETUP)
    refused = _instruction(_RETURN, _ERRNO | errno.ENOSYS)
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_IF_EQUAL, numbers.audit, equal=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
        _instruction(_IF_AT_LEAST, _X32, otherwise=1),
        refused,
    ]
    for number in absent:
        program += [_instruction(_IF_EQUAL, number, otherwise=1), refused]
    families = [
        _instruction(_LOAD, _FIRST_ARGUMENT),
        *(_instruction(_IF_EQUAL, family, equal=len(_FAMILIES) - index) for index, family in enumerate(_FAMILIES)),
        _instruction(_RETURN, _ERRNO | errno.EAFNOSUPPORT),
    ]
    program += [
        _instruction(_IF_EQUAL, numbers.socket, equal=1),
        _instruction(_IF_EQUAL, numbers.socketpair, otherwise=len(families)),
        *families,
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def _instruction(code: int, constant: int, equal: int = 0, otherwise: int = 0) -> bytes:
    """One instruction. equal, otherwise: how many instructions a jump skips when the comparison holds, and when it does not."""
    return struct.pack("<HBBI", code, equal, otherwise, constant)


def restrict_calls() -> None:
    """From here on this process and its descendants cannot make these calls. Needs `kernel.forbid_new_privileges` before.

    OSError where the kernel takes no filter. On an architecture whose numbers are not known here, nothing is restricted.
    """
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        return
    program = filter_program(numbers)
    filters = _Program(len(program) // 8, program)
    kernel.set_process_option(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filters), "prctl SECCOMP")


def prepare_filter() -> None:
    """Makes the filter's program beforehand."""
    if (numbers := _NUMBERS.get(os.uname().machine)) is not None:
        filter_program(numbers)


def leave_session_keyring() -> None:
    """Gives this process and its descendants a fresh session keyring, so that the caller's is out of reach."""
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is not None:  # a container may refuse the call, and then refuses it to the program as well
        kernel.try_call(numbers.keyctl, _JOIN_SESSION_KEYRING, None)
