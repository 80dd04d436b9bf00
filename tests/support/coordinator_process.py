"""A real coordinator as processes: begun by ``init``, served by ``serve``."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.key_ceremony import PEOPLE, Ceremony

PROGRAM = Path(sys.executable).parent / "hansa-coordinator"


OPERATORS = {"olga": ("org-a", ["federation-operator"]), "oscar": ("org-b", ["federation-operator"])}


@dataclass(frozen=True)
class Served:
    """A coordinator that serves. ``operators`` are the profiles of olga and oscar."""

    ceremony: Ceremony
    operators: tuple[Path, Path]


@contextmanager
def serving_coordinator(folder: Path, settings: str = "") -> Iterator[Served]:
    """Yield a new coordinator in ``folder``, whose trust repository the public commands made.

    Args:
        folder: where all of it lies.
        settings: further lines for its ``coordinator.toml``.
    """
    ceremony = Ceremony(folder / "trust")
    ceremony.init()
    ceremony.add_people(PEOPLE | OPERATORS)
    ceremony.sign("root1", "root2", "targets1", "targets2")
    people, enrolment, node = free_ports(3)
    state = folder / "coordinator"
    keys = [word for name in ("snapshot", "timestamp", "log") for word in (f"--{name}-key", ceremony.key(name))]
    ports = ["--people-port", people, "--enrolment-port", enrolment, "--node-port", node]
    _run("init", state, "--trust", ceremony.repo, *keys, *ports)
    with (state / "coordinator.toml").open("a") as file:
        file.write(settings)
    _run("profile", state, "--write", folder)
    profiles = [profile_of(name, ceremony.key(name), folder / "people.toml") for name in OPERATORS]
    log = folder / "coordinator.log"
    with log.open("wb") as sink, subprocess.Popen([PROGRAM, "serve", state], stdout=sink, stderr=sink) as process:
        try:
            _wait_until_listening(process, people, log)
            yield Served(ceremony, (profiles[0], profiles[1]))
        finally:
            process.terminate()
            process.wait(30)


def profile_of(person: str, key: Path, like: Path) -> Path:
    """Write ``person``'s profile beside ``key``, from another one of the same coordinator."""
    lines = like.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("person", "key_file", "#"))]
    path = key.with_name(f"{person}.toml")
    path.write_text("\n".join([*kept, f'person = "{person}"', f'key_file = "{key}"', ""]))
    return path


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
