"""The node's broker: by default a redis-server that the agent owns.

It listens on a unix socket in the private state folder and nowhere else, keeps
an append-only file, and outlives an agent that is killed: the next agent adopts
it, so that workers need not notice. RabbitMQ, or a Redis of the node's own, is
used by URL instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import redis
import structlog

from hansa.contract.errors import HansaError, Reason

_log = structlog.get_logger(__name__)

_SOCKET: Final = "redis.sock"
_PID_FILE: Final = "redis.pid"
_WRITTEN: Final = "appendonlydir"
_START_PATIENCE_SECONDS: Final = 10.0
_STOP_PATIENCE_SECONDS: Final = 10.0
_STEP_SECONDS: Final = 0.01
_GUARD_SECONDS: Final = 1.0
_MAX_ADDRESS_BYTES: Final = 107


def broker_url(state_dir: Path, configured: str | None) -> str:
    """Return where the node's broker is.

    Args:
        state_dir: the node's state folder.
        configured: the URL from ``agent.toml``; None for the agent's own broker.
    """
    return configured if configured is not None else _url(state_dir / "broker")


def _url(folder: Path) -> str:
    return f"redis+socket://{_address(folder)}?virtual_host=0"


def _address(folder: Path) -> str:
    """Return a name of the socket that fits into an address.

    In a deep state folder it goes through a descriptor of the folder, which
    this process then keeps for its life.
    """
    path = str(folder.absolute() / _SOCKET)
    if len(os.fsencode(path)) <= _MAX_ADDRESS_BYTES:
        return path
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{descriptor}/{_SOCKET}"


class EmbeddedBroker:
    """The redis-server in ``folder``, started or adopted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._place: str | None = None

    @property
    def url(self) -> str:
        """Where it is, for ``make_app``."""
        return f"redis+socket://{self._socket}?virtual_host=0"

    @property
    def _socket(self) -> str:
        if self._place is None:
            self._place = _address(self._folder)
        return self._place

    async def start(self) -> None:
        """Have the broker running; from then on it is started again should it die.

        Raises:
            HansaError: ``CONFIG_INVALID``; redis-server is missing or does not start.
        """
        await asyncio.to_thread(self.ensure_running)
        self._guard = asyncio.create_task(self._watch(), name="broker")

    async def stop(self) -> None:
        """Stop the broker, adopted or not. A repeat does nothing."""
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)
            self._guard = None
        await asyncio.to_thread(self.shut_down)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_GUARD_SECONDS)
            try:
                await asyncio.to_thread(self.ensure_running)
            except HansaError as error:
                _log.error("broker_down", error=str(error))

    def ensure_running(self) -> None:
        """Start the broker unless one answers. Blocks; a repeat does nothing.

        Raises:
            HansaError: as ``start``.
        """
        if self._answering_pid() is not None:
            return
        if self._process is not None:
            if self._process.poll() is None:
                return  # busy, for instance reading its file
            _log.warning("broker_died", status=self._process.returncode)
        self._start()

    def _answering_pid(self) -> int | None:
        """Return the pid of the server behind the socket; None if nobody answers."""
        try:
            with contextlib.closing(redis.Redis(unix_socket_path=self._socket, socket_timeout=2)) as client:
                return int(client.info("server")["process_id"])
        except (redis.RedisError, OSError):
            return None

    def _start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise HansaError(
                Reason.CONFIG_INVALID, "redis-server is missing; install it or set broker_url.", field="broker_url"
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # A server that still reads its file holds the pid file and will answer soon.
        self._stop_pid(self._recorded_pid())
        if not self._launch(program):
            # All that it could have kept is in the agent's store: better none of it than no broker.
            self._put_aside()
            if not self._launch(program):
                raise HansaError(
                    Reason.CONFIG_INVALID,
                    f"The node's broker does not start; see {self._folder / 'redis.log'}.",
                    field="broker_url",
                )
        _log.info("broker_started", pid=self._process.pid if self._process else 0)

    def _launch(self, program: str) -> bool:
        """Start it; return whether it answers."""
        self._process = subprocess.Popen(
            [program, *self._settings()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            start_new_session=True,
            umask=0o077,
        )
        give_up = time.monotonic() + _START_PATIENCE_SECONDS
        while self._answering_pid() != self._process.pid:
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.shut_down()
                return False
            time.sleep(_STEP_SECONDS)
        return True

    def _put_aside(self) -> None:
        """Move what it has written out of its way; what was put aside before is deleted."""
        written, aside = self._folder / _WRITTEN, self._folder / f"{_WRITTEN}.unreadable"
        shutil.rmtree(aside, ignore_errors=True)
        if written.exists():
            written.rename(aside)
            _log.warning("broker_file_put_aside", path=str(aside))

    def _settings(self) -> list[str]:
        # Relative names: the address of a socket may not be long.
        settings = {
            "port": "0",
            "unixsocket": _SOCKET,
            "unixsocketperm": "600",
            "dir": ".",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "databases": "1",
            "daemonize": "no",
            "pidfile": str(self._folder.absolute() / _PID_FILE),
            "logfile": "redis.log",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _recorded_pid(self) -> int | None:
        try:
            pid = int((self._folder / _PID_FILE).read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            here = Path(f"/proc/{pid}/cwd").readlink()
        except (OSError, ValueError):
            return None
        # The number may have gone to somebody else.
        return pid if b"redis-server" in command and here == self._folder.resolve() else None

    def shut_down(self) -> None:
        """Stop the broker that answers, or is recorded. Blocks; a repeat does nothing."""
        self._stop_pid(self._answering_pid() or self._recorded_pid())
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _stop_pid(self, pid: int | None) -> None:
        if pid is None:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not select.select([handle], [], [], _STOP_PATIENCE_SECONDS)[0]:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], _STOP_PATIENCE_SECONDS)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)
        _log.info("broker_stopped", pid=pid)
