"""Tries what a sandbox must refuse; prints what got through and ends with status 1 if anything did."""

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# What the test placed outside: {"tcp": port, "udp": port, "abstract": name, "paths": [...]}
_TARGETS = json.loads(Path("/bundle/targets.json").read_text())
_LIBC = ctypes.CDLL(None, use_errno=True)
_AF_VSOCK, _AF_NETLINK, _AF_PACKET = 40, 16, 17


def _connect(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as probe:
        probe.settimeout(2)
        probe.connect(address)  # type: ignore[arg-type]
        probe.send(b"genotypes")


def _udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.sendto(b"genotypes", ("8.8.8.8", 53))


def _tcp_local() -> None:
    _connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", _TARGETS["tcp"]))


def _abstract() -> None:
    _connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + _TARGETS["abstract"])


def _write(path: str) -> Callable[[], None]:
    def probe() -> None:
        Path(path).write_text("altered")

    probe.__name__ = f"write {path}"
    return probe


def _read(path: str) -> Callable[[], None]:
    def probe() -> None:
        target = Path(path)
        if target.is_dir():
            os.listdir(target)  # noqa: PTH208
        else:
            target.read_bytes()

    probe.__name__ = f"read {path}"
    return probe


def _run(*words: str) -> Callable[[], None]:
    def probe() -> None:
        subprocess.run(words, check=True, capture_output=True, timeout=10)

    probe.__name__ = " ".join(words)
    return probe


def _family(number: int) -> Callable[[], None]:
    def probe() -> None:
        socket.socket(number, socket.SOCK_STREAM).close()

    probe.__name__ = f"socket family {number}"
    return probe


def _capable() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    held = [line for line in lines if line.startswith(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))]
    if all(int(line.split()[1], 16) == 0 for line in held) and "NoNewPrivs:\t1" in lines and os.getuid() != 0:
        raise PermissionError("nothing is held")


def _environment() -> None:
    if not set(os.environ) & {"HANSA_SECRET", "PYTEST_CURRENT_TEST", "SSH_AUTH_SOCK"}:
        raise PermissionError("nothing of the host's")


def _others() -> None:
    """See a process that is not of this box."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    if max(pids) < 200:
        raise PermissionError("only the box's own")


def _ptrace() -> None:
    if _LIBC.ptrace(0, 0, 0, 0) != 0:
        raise PermissionError("refused")


_PROBES = [
    _tcp_local,
    _udp,
    _abstract,
    _capable,
    _environment,
    _others,
    _ptrace,
    *(_family(number) for number in (_AF_VSOCK, _AF_NETLINK, _AF_PACKET)),
    *(_read(path) for path in (*_TARGETS["paths"], "/etc/shadow", "/sys/kernel", "/proc/1/environ", "/opt/hansa/x")),
    *(_write(path) for path in ("/data/x", "/data/genotypes.txt", "/bundle/x", "/bundle/Snakefile", "/usr/x", "/x")),
    *(_write(path) for path in ("/opt/x", "/opt/hansa/program/inside.py", "/proc/sys/kernel/hostname", "/etc/x")),
    _run("unshare", "-U", "true"),
    _run("unshare", "-n", "true"),
    _run("mount", "-t", "tmpfs", "none", "/tmp"),  # noqa: S108
    _run("umount", "/data"),
    _run("nsenter", "-t", "1", "-n", "true"),
    _run("chroot", "/tmp", "true"),  # noqa: S108
    _run("mknod", "/tmp/sda", "b", "8", "0"),  # noqa: S108
    _run("su", "-c", "true"),
]


def main() -> int:
    """Try everything."""
    through = []
    for probe in _PROBES:
        try:
            probe()
        except Exception:  # noqa: S112 # any refusal will do
            continue
        through.append(probe.__name__)
    for name in through:
        print(f"GOT THROUGH from the {sys.argv[1]}: {name}")  # noqa: T201
    print(f"tried {len(_PROBES)} from the {sys.argv[1]}")  # noqa: T201
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main())
