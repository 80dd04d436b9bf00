"""A real coordinator as processes: begun by ``init``, served by ``serve``."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hansa.runtime.clock import utc_now
from tests.support.job_world import job_trust
from tests.support.trust_repository import as_arguments, write_key, write_trust
from tests.support.trust_world import PEOPLE

PROGRAM = Path(sys.executable).parent / "hansa-coordinator"


@contextmanager
def serving_coordinator(folder: Path) -> Iterator[Path]:
    """Yield the first operator's profile while a new coordinator in ``folder`` serves.

    Beside it lie keys and profiles of everybody in ``PEOPLE`` (``ada.toml``),
    and the trust repository with the coordinator's keys (``given``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    trust = job_trust(utc_now())
    people, enrolment, node = free_ports(3)
    state = folder / "coordinator"
    _run(
        "init", state, *as_arguments(write_trust(trust, folder / "given")),
        "--people-port", people, "--enrolment-port", enrolment, "--node-port", node,
    )  # fmt: skip
    for person in PEOPLE:
        key = write_key(folder / person, trust.keys[person])
        (folder / f"{person}.toml").write_bytes(_run("profile", state, "--person", person, "--key", key))
    log = folder / "coordinator.log"
    with log.open("wb") as sink, subprocess.Popen([PROGRAM, "serve", state], stdout=sink, stderr=sink) as process:
        try:
            _wait_until_listening(process, people, log)
            yield folder / "op1.toml"
        finally:
            process.terminate()
            process.wait(30)


def free_ports(count: int) -> Sequence[int]:
    """Return ports of loopback that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _run(*arguments: object) -> bytes:
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return done.stdout


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"the coordinator does not serve: {log.read_text()}")
