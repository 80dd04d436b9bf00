"""A private RabbitMQ for tests: own folders and loopback ports, ended by its pid."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kombu import Connection

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_PATIENCE_SECONDS = 90.0


@contextmanager
def private_rabbitmq() -> Iterator[str]:
    """Run a server for as long as the context lasts; yield its URL.

    Its one user and password are made for this run; the default user, whose
    password everybody knows, does not exist.

    Raises:
        FileNotFoundError: RabbitMQ is not installed (`make system`).
        TimeoutError: it does not answer.
    """
    root = Path(tempfile.mkdtemp(prefix="hansa-mq-", dir="/tmp"))
    port, dist_port, epmd_port = free_ports()
    user, password = "hansa", secrets.token_hex(16)
    config = root / "rabbitmq.conf"
    config.write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\ndefault_user = {user}\ndefault_pass = {password}\nloopback_users = none\n"
    )
    url = f"amqp://{user}:{password}@127.0.0.1:{port}//"
    with (root / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [SERVER], env=server_environment(root, dist_port, epmd_port), stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(url, server, root / "server.log")
        yield url
    finally:
        # The server is a shell around the emulator, which brought its own epmd: the whole session is ours.
        _end_session(server)
        shutil.rmtree(root, ignore_errors=True)


def free_ports() -> tuple[int, int, int]:
    """Return three ports that are free on the loopback now: the server's, its distribution's and epmd's."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        first, second, third = (int(each.getsockname()[1]) for each in sockets)
    return first, second, third


def server_environment(root: Path, dist_port: int, epmd_port: int) -> Mapping[str, str]:
    """Return the environment of a server with all its files in ``root`` and a name of its own."""
    return {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "HOME": str(root),
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": f"hansa{dist_port}@localhost",
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_MNESIA_BASE": str(root / "data"),
        "RABBITMQ_LOG_BASE": str(root / "log"),
        "RABBITMQ_CONFIG_FILE": str(root / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(root / "plugins"),
        "RABBITMQ_PID_FILE": str(root / "pid"),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
    }


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < give_up and server.poll() is None:
        try:
            with Connection(url, connect_timeout=2) as connection:
                connection.connect()
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"RabbitMQ does not answer; its log ends: {log.read_text()[-2000:]}")


def _end_session(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _session_members(server.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            continue
    server.wait(30)


def _session_members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found
