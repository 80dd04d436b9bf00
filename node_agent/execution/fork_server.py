"""The fork server: has imported Snakemake, and forks a child for every run.

It runs in a mount namespace like a box's own (``layout.system_mounts``), with
no network, no data, no secret and no descriptor but its control socket. Single-
threaded, and ended by the end of its worker.

A request comes with four descriptors: the first process of a box built by
bubblewrap, the wire to the runner, the output, and a status socket. The child
A tells its pid, waits until the worker has put it into the run's control group,
joins the box's namespaces and forks again, for a pid namespace only takes in
children. That child B gives up every privilege before it touches anything of
the analysis. A tells how B ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
from typing import Any, Final, NoReturn

PROGRAM_DIR: Final = "/opt/hansa/program"
_REQUEST_BYTES: Final = 1 << 16
_DESCRIPTORS: Final = 4
# CLONE_NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
_NAMESPACES: Final = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
_SECCOMP_MODE_FILTER: Final = 2
_CAP_VERSION_3: Final = 0x20080522
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def main(argv: list[str]) -> None:
    """Serve: ``fork_server.py CONTROL_FD UID GID`` with the seccomp filter as first message."""
    control = socket.socket(fileno=int(argv[0]))
    uid, gid = int(argv[1]), int(argv[2])
    seccomp = control.recv(_REQUEST_BYTES)
    sys.path.insert(0, PROGRAM_DIR)
    import inside  # type: ignore[import-not-found] # it lies beside this file, in the box only

    inside.warm_up()
    gc.collect()
    # Keeps the pages of what was imported shared with the children.
    gc.freeze()
    # Children are reaped by the kernel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if os.listdir("/proc/self/task") != [str(os.getpid())]:  # noqa: PTH208
        raise SystemExit("the fork server must have one thread only")
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _REQUEST_BYTES, _DESCRIPTORS)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _child(json.loads(message), descriptors, (uid, gid), seccomp)
        for descriptor in descriptors:
            os.close(descriptor)


def _child(request: dict[str, Any], descriptors: list[int], user: tuple[int, int], seccomp: bytes) -> NoReturn:
    """Be A: enter the box, fork B, tell how it ended."""
    status_code = 70
    try:
        first, channel, output, status_fd = descriptors
        status = socket.socket(fileno=status_fd)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status.sendall(f"{os.getpid()}\n".encode())
        if status.recv(1) != b"!":
            os._exit(0)
        _check(_LIBC.setns(first, _NAMESPACES), "setns")
        pid = os.fork()
        if pid == 0:
            status.close()
            os.close(first)
            _enter(request, channel, output, user, seccomp)
        os.close(channel)
        _, ended = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(ended)
        status.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
        status_code = 0
    finally:
        os._exit(status_code)


def _enter(request: dict[str, Any], channel: int, output: int, user: tuple[int, int], seccomp: bytes) -> NoReturn:
    """Be B: drop everything, then run the workflow."""
    code = 70
    try:
        os.setsid()
        nothing = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        kept = os.dup2(channel, 3)
        os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        _limit(request)
        _drop_privileges(user, seccomp)
        os.umask(0o022)
        os.chdir("/work")
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["snakemake"]
        code = _run(request, kept)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(request: dict[str, Any], channel: int) -> int:
    import random

    import inside

    random.seed()
    try:
        return 0 if inside.run_workflow(request["snakefile"], request["cores"], channel) else 1
    except BaseException:  # the process's outermost edge
        sys.excepthook(*sys.exc_info())
        return 1


def _limit(request: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], request["file_bytes"]))
    if request["address_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (request["address_bytes"], request["address_bytes"]))


def _drop_privileges(user: tuple[int, int], seccomp: bytes) -> None:
    """Become ``user`` without capabilities, for good; what cannot be dropped ends the process."""
    uid, gid = user
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last one that this kernel knows
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    _check(_LIBC.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # Else /proc/self would belong to root.
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
    if len(seccomp) > 1:
        program = _Filter(len(seccomp) // 8, seccomp)
        _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what} failed")


if __name__ == "__main__":
    main(sys.argv[1:])
