"""The system calls that an analysis may not make, as a filter for the kernel.

The second wall behind namespaces and missing capabilities: what a computation
never needs and what kernel faults are mostly found in (user namespaces, mounts,
BPF, io_uring, keys, other processes' memory), and every socket family but
unix and IP, of which vsock matters most: it is not bound to network namespaces.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_X32: Final = 0x40000000
# CLONE_NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_NEW_NAMESPACES: Final = 0x7E020080
_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

# fmt: off
_SAME_EVERYWHERE: Final = (
    425, 426, 427,  # io_uring_*
    428, 429, 430, 431, 432, 433, 442,  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
    438, 443,  # pidfd_getfd, quotactl_fd
)


@dataclass(frozen=True, slots=True)
class _Machine:
    audit: int
    clone: int
    clone3: int
    socket: int
    # mount umount2 pivot_root chroot ptrace keyctl add_key request_key bpf perf_event_open unshare setns
    # kexec_load kexec_file_load init_module finit_module delete_module userfaultfd open_by_handle_at
    # name_to_handle_at process_vm_readv process_vm_writev swapon swapoff reboot acct quotactl syslog
    # move_pages kcmp fanotify_init
    denied: Sequence[int]


_MACHINES: Final[Mapping[str, _Machine]] = {
    "x86_64": _Machine(0xC000003E, 56, 435, 41, (
        165, 166, 155, 161, 101, 250, 248, 249, 321, 298, 272, 308,
        246, 320, 175, 313, 176, 323, 304,
        303, 310, 311, 167, 168, 169, 163, 179, 103,
        279, 312, 300,
    )),
    "aarch64": _Machine(0xC00000B7, 220, 435, 198, (
        40, 39, 41, 51, 117, 219, 217, 218, 280, 241, 97, 268,
        104, 294, 105, 273, 106, 282, 265,
        264, 270, 271, 224, 225, 142, 89, 60, 116,
        239, 272, 262,
    )),
}
# fmt: on


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _answer(number: int, errno: int) -> bytes:
    """If the call is ``number``, refuse it with ``errno``."""
    return _op(_JUMP_EQUAL, number, 0, 1) + _op(_RETURN, _ERRNO | errno)


def filter_program(machine: str) -> bytes | None:
    """Return the filter (classic BPF) for ``platform.machine()``; None if there is none for it."""
    found = _MACHINES.get(machine)
    if found is None:
        return None
    program = [
        _op(_LOAD, _MACHINE_AT),
        _op(_JUMP_EQUAL, found.audit, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _NUMBER_AT),
        # The x32 numbers would walk around the list below.
        _op(_JUMP_AT_LEAST, _X32, 0, 1),
        _op(_RETURN, _ERRNO | _EPERM),
        *(_answer(number, _EPERM) for number in (*found.denied, *_SAME_EVERYWHERE)),
        # Its flags lie in memory, where a filter cannot look; the C library then falls back to clone.
        _answer(found.clone3, _ENOSYS),
        # clone: no new namespace. (5 operations, skipped for other calls)
        _op(_JUMP_EQUAL, found.clone, 0, 4),
        _op(_LOAD, _FIRST_ARGUMENT_AT),
        _op(_JUMP_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _op(_RETURN, _ERRNO | _EPERM),
        _op(_RETURN, _ALLOW),
        # socket: three families.
        _op(_JUMP_EQUAL, found.socket, 0, 2 + len(_FAMILIES)),
        _op(_LOAD, _FIRST_ARGUMENT_AT),
        *(_op(_JUMP_EQUAL, family, len(_FAMILIES) - place, 0) for place, family in enumerate(_FAMILIES)),
        _op(_RETURN, _ERRNO | _EAFNOSUPPORT),
        _op(_RETURN, _ALLOW),
    ]
    return b"".join(program)
