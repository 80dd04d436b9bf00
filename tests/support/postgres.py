"""A private PostgreSQL for tests: its own folder and unix socket, no port, ended by its pid."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

_DEBIAN = Path("/usr/lib/postgresql")
_USER = "postgres"
_PATIENCE_SECONDS = "240"


class Postgres:
    """A running server; each test takes a database of its own."""

    def __init__(self, socket_dir: Path) -> None:
        self._socket_dir = socket_dir

    @property
    def _data(self) -> Path:
        return self._socket_dir / "data"

    def start(self) -> None:
        """Start the server, and return once it answers.

        Raises:
            subprocess.CalledProcessError: it does not start.
        """
        home = self._socket_dir
        settings = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off -c max_connections=200"
        _run("pg_ctl", "-D", self._data, "-l", home / "log", "-o", settings, "-w", "-t", _PATIENCE_SECONDS, "start")

    def postmaster(self) -> int | None:
        """Return the pid of the server as its own file has it; None if it was stopped in order."""
        try:
            return int((self._data / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def new_database(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"test_{uuid4().hex}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._socket_dir}"

    def _conninfo(self, database: str) -> str:
        return f"host={self._socket_dir} user={_USER} dbname={database}"


@contextmanager
def private_postgres() -> Iterator[Postgres]:
    """Run a server for as long as the context lasts.

    It runs as the user ``postgres`` where we are root, which it would refuse
    to run as.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    # Below /tmp: a socket's path may be 107 bytes long, and the server's user must get there.
    root = Path(tempfile.mkdtemp(prefix="hansa-pg-", dir="/tmp"))
    root.chmod(0o755)
    home = root / "home"
    home.mkdir(mode=0o700)
    try:
        owner = _owner()
        if owner is not None:
            shutil.chown(home, owner, owner)
        data, server = home / "data", Postgres(home)
        _run("initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            # pg_ctl signals the pid in the data folder, and waits for its end.
            _run("pg_ctl", "-D", data, "-m", "immediate", "-w", "-t", _PATIENCE_SECONDS, "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _owner() -> str | None:
    return _USER if os.geteuid() == 0 else None


def _run(program: str, *arguments: object) -> None:
    owner = _owner()
    command = [str(_find(program)), *map(str, arguments)]
    # Not by subprocess's own `user`: that forks, and a fork of a process with gRPC's threads may end in a crash.
    become = ["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups", "--"] if owner else []
    subprocess.run(
        [*become, *command],
        check=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "USER": owner or getpass.getuser()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None,
    )


def _find(program: str) -> Path:
    versions = sorted(_DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in versions:
        if (folder / program).exists():
            return folder / program
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"{program} is missing; install it with: apt-get install postgresql")
    return Path(found).resolve()
