"""Daemons that are started, found again and stopped by what they are.

A pid alone may be another process's by now. Two marks tell ours: a file beside
the pid file holds the start time of the process, and every process that we
start, with all that it starts in turn, carries the federation's folder in its
environment. Only a process that has its mark is ever signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK: Final = "HANSA_LOCAL_FEDERATION"

_STOP_SECONDS: Final = 15.0
_KILL_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
# Fields of /proc/<pid>/stat after the parenthesised name: state first, then
# eighteen more up to the start time in clock ticks since boot (proc(5)).
_STATE_FIELD, _START_FIELD = 0, 19


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine, by its pid and its start time in clock ticks."""

    pid: int
    started: str

    def alive(self) -> bool:
        """Say whether exactly this process still runs."""
        stat = _stat(self.pid)
        return stat is not None and stat[_START_FIELD] == self.started and stat[_STATE_FIELD] != "Z"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has gone."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _process(pid: int) -> Process | None:
    stat = _stat(pid)
    return Process(pid, stat[_START_FIELD]) if stat else None


@dataclass(frozen=True, slots=True)
class Daemon:
    """A long-running command with a pid file and a log file."""

    command: tuple[str, ...]
    pid_file: Path
    log_file: Path

    @property
    def _start_file(self) -> Path:
        return self.pid_file.with_name(f".{self.pid_file.name}.start")

    def running(self) -> Process | None:
        """Return the process that was started last, if it still runs."""
        try:
            found = Process(int(self.pid_file.read_text()), self._start_file.read_text().strip())
        except (OSError, ValueError):
            return None
        return found if found.alive() else None

    def start(self, root: Path, env: Mapping[str, str]) -> Process:
        """Start the command, cut off from our terminal, and write its pid file.

        Args:
            root: the federation's folder; the mark of all that comes of it.
            env: the environment; the mark is added.
        """
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**env, MARK: str(root)},
                start_new_session=True,
            )
        started = _process(child.pid) or Process(child.pid, "")
        # The child outlives us on purpose; nothing here waits for it.
        child.returncode = 0
        self._start_file.write_text(f"{started.started}\n")
        self.pid_file.write_text(f"{started.pid}\n")
        return started

    def forget(self) -> None:
        """Remove the pid file of a process that has ended."""
        self.pid_file.unlink(missing_ok=True)
        self._start_file.unlink(missing_ok=True)

    def log_tail(self, lines: int = 15) -> str:
        """Return the end of the log, for a message to the user."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def stop(daemons: Iterable[Daemon], wait: float = _STOP_SECONDS) -> None:
    """Ask the daemons to end, all at once, and insist after ``wait`` seconds."""
    known = list(daemons)
    _end([process for daemon in known if (process := daemon.running())], wait)
    for daemon in known:
        daemon.forget()


def sweep(root: Path) -> int:
    """End every process that carries the mark of ``root``; return how many there were.

    What a killed daemon left behind (a broker, a worker's children) is found
    here: it inherited the mark.
    """
    left = list(marked(root))
    _end(left, _KILL_SECONDS)
    return len(left)


def marked(root: Path) -> list[Process]:
    """Return the processes that carry the mark of ``root``."""
    mark = f"{MARK}={root}".encode()
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                process = _process(int(entry.name))
                if process is not None and process.alive():
                    found.append(process)
    return found


def _end(processes: Sequence[Process], wait: float) -> None:
    for number, patience in ((signal.SIGTERM, wait), (signal.SIGKILL, _KILL_SECONDS)):
        for process in processes:
            process.signal(number)
        if wait_until(lambda: not any(process.alive() for process in processes), patience):
            return


def wait_until(condition: Callable[[], bool], seconds: float, every: float = _POLL_SECONDS) -> bool:
    """Return True once ``condition`` holds, or False after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
