"""The servers that Hansa uses and does not own: a PostgreSQL and a RabbitMQ that may be killed and come again."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from deploy.local.processes import Process, wait_until
from tests.support.nemesis_processes import kill, living
from tests.support.postgres import Postgres
from tests.support.rabbitmq import SERVER, free_ports, server_environment

_END_SECONDS: Final = 30.0
_USER: Final = "hansa"


class Service(Protocol):
    """A server that is kept running."""

    @property
    def name(self) -> str:
        """What it is called among the parts."""

    def processes(self) -> list[Process]:
        """Return the processes that may be killed or frozen."""

    def running(self) -> bool:
        """Say whether its main process lives."""

    def start(self) -> None:
        """Start it; whether it answers shows later. Blocks."""

    def stop(self) -> None:
        """End all of it. A repeat does nothing."""


class PostgresService:
    """The coordinator's database. A killed child makes the server recover by itself; a killed postmaster needs us."""

    name = "database"

    def __init__(self, server: Postgres) -> None:
        self._server = server

    def processes(self) -> list[Process]:
        """Return the postmaster and its children."""
        head = self._server.postmaster()
        return [one.process for one in living() if head is not None and head in (one.pid, one.parent)]

    def running(self) -> bool:
        """Say whether the postmaster lives."""
        head = self._server.postmaster()
        return any(one.pid == head for one in living())

    def start(self) -> None:
        """Start the postmaster; refused while children of the one before are there, and then tried again."""
        with suppress(subprocess.CalledProcessError):
            self._server.start()

    def stop(self) -> None:
        """Leave it: who made the server ends it."""


class RabbitMqService:
    """One server with a virtual host for each node, reached over the nodes' wires."""

    name = "message server"

    def __init__(self, host: str, nodes: Sequence[str]) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="hansa-mq-", dir="/tmp"))
        self._port, self._dist_port, self._epmd_port = free_ports()
        self._host, self.secret = host, secrets.token_hex(16)
        definitions = self._root / "definitions.json"
        definitions.write_text(json.dumps(_definitions(nodes, self.secret)))
        (self._root / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {host}:{self._port}\nload_definitions = {definitions}\nloopback_users = none\n"
        )

    def url(self, node: str) -> str:
        """Return the URL of a node's virtual host."""
        return f"amqp://{_USER}:{self.secret}@{self._host}:{self._port}/{node}"

    def processes(self) -> list[Process]:
        """Return the emulator."""
        return [one.process for one in living() if "beam.smp" in one.command and str(self._root) in one.command]

    def running(self) -> bool:
        """Say whether anything of it lives."""
        return any(str(self._root) in one.command for one in living())

    def start(self) -> None:
        """Start it."""
        environment = server_environment(self._root, self._dist_port, self._epmd_port)
        with (self._root / "server.log").open("ab") as log:
            subprocess.Popen([SERVER], env=environment, stdout=log, stderr=log, start_new_session=True)

    def forget(self) -> None:
        """Delete what it has stored, once it is dead."""
        shutil.rmtree(self._root / "data", ignore_errors=True)

    def stop(self) -> None:
        """End it and remove its files."""
        for one in living():
            if str(self._root) in one.command:
                kill(one.process)
        wait_until(lambda: not self.running(), _END_SECONDS)
        shutil.rmtree(self._root, ignore_errors=True)


def _definitions(nodes: Sequence[str], password: str) -> dict[str, Any]:
    salt = secrets.token_bytes(4)
    hashed = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [
            {
                "name": _USER,
                "password_hash": hashed,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
        ],
        "vhosts": [{"name": node} for node in nodes],
        "permissions": [{"user": _USER, "vhost": node, **everything} for node in nodes],
    }
