"""The worker's end of the fork server: starts it, asks it for children.

One fork server serves all runs of a worker. If it dies it is started again with
the next run; the run that saw it die starts cold.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from node_agent.execution import layout
from node_agent.execution.inside import PROGRAM_DIR
from node_agent.execution.sandbox import SandboxError

_log = structlog.get_logger(__name__)

_START_PATIENCE_SECONDS: Final = 60.0
_KEPT: Final = ("CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
_GONE: Final = 137
_MEMORY_BYTES: Final = 1 << 20


@dataclass(slots=True)
class WarmProgram:
    """A run started by the fork server. See ``sandbox.Program``."""

    status: socket.socket
    # Holds the box's namespaces open until it is closed.
    hold: socket.socket

    @property
    def ended_fd(self) -> int:
        """The status socket: it speaks, or hangs up, at the end."""
        return self.status.fileno()

    def exit_status(self) -> int:
        """Return what the fork server's child reported; 137 if it was killed itself."""
        line = b""
        while not line.endswith(b"\n"):
            part = self.status.recv(16)
            if not part:
                return _GONE
            line += part
        return int(line)

    def close(self) -> None:
        """Let the box's namespaces go."""
        self.status.close()
        self.hold.close()


class ForkServer:
    """Starts workflows as children of one warm process. Thread-safe."""

    def __init__(self, bwrap: str, interpreter: layout.Interpreter, seccomp: bytes | None) -> None:
        self._bwrap, self._interpreter, self._seccomp = bwrap, interpreter, seccomp
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def warm_up(self) -> None:
        """Have the server running; a failure is logged, and the next run tries again."""
        with self._lock:
            try:
                self._running()
            except SandboxError as error:
                _log.warning("fork_server_failed", error=str(error))

    def start(
        self,
        request: Mapping[str, Any],
        descriptors: Sequence[int],
        attach: Callable[[int], None],
        hold: socket.socket,
    ) -> WarmProgram:
        """Start a workflow in the box whose first process is ``descriptors[0]``.

        Args:
            request: what ``fork_server`` expects.
            descriptors: a pidfd, the wire, the output; the caller closes its copies.
            attach: bounds a process, given its pid, before it enters the box.
            hold: closed when the program is.

        Raises:
            SandboxError: nothing was started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                control = self._running()
                try:
                    socket.send_fds(control, [json.dumps(request).encode()], [*descriptors, theirs.fileno()])
                except OSError as error:
                    self._stop()
                    raise SandboxError(f"the fork server has gone: {error}") from error
            attach(_pid(ours))
            ours.sendall(b"!")
        except (OSError, ValueError) as error:
            ours.close()
            raise SandboxError(f"the fork server's child did not start: {error}") from error
        except BaseException:
            ours.close()
            raise
        return WarmProgram(ours, hold)

    def _running(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                self._command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={},
                umask=0o022,
            )
        self._control = ours
        ours.settimeout(_START_PATIENCE_SECONDS)
        try:
            ours.send(self._seccomp or b"-")
            ready = ours.recv(16)
        except OSError as error:
            self._stop()
            raise SandboxError(f"the fork server does not start: {error}") from error
        if ready != b"ready":
            self._stop()
            raise SandboxError("the fork server does not start")
        return ours

    def _command(self, control: int) -> list[str]:
        capabilities = [word for capability in _KEPT for word in ("--cap-add", capability)]
        return [
            self._bwrap,
            *(
                "--unshare-net",
                "--unshare-ipc",
                "--unshare-uts",
                "--hostname",
                "hansa",
                "--die-with-parent",
                "--new-session",
            ),
            *("--cap-drop", "ALL", *capabilities),
            *layout.system_mounts(self._interpreter, _MEMORY_BYTES),
            *("--remount-ro", "/", "--chdir", "/", "--setenv", "USER", "hansa", "--setenv", "HOME", "/nowhere"),
            *("--setenv", "PYTHONDONTWRITEBYTECODE", "1", "--"),
            *(self._interpreter.python, "-I", f"{PROGRAM_DIR}/fork_server.py"),
            *(str(control), str(layout.BOX_UID), str(layout.BOX_GID)),
        ]

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the server. Runs in progress are not its children any more than the box's: they go on."""
        with self._lock:
            self._stop()


def _pid(status: socket.socket) -> int:
    line = b""
    while not line.endswith(b"\n"):
        part = status.recv(16)
        if not part:
            raise ValueError("it hung up")
        line += part
    return int(line)
