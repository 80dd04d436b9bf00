"""The worker program: takes messages off the node's queues and does what they say.

Two pools, so that runs cannot starve their own rules: one program for whole
runs, one for rules, and a supervisor above both where they share a host. No
program here opens the node's store, holds a key, or imports grpc.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import structlog

from hansa.contract.errors import HansaError
from hansa.runtime.backoff import delays
from hansa.runtime.logging import set_up_logging
from node_agent.config import StateFolder, load_config, load_settings

_log = structlog.get_logger(__name__)

POOLS: Final = ("runs", "rules", "all")
_SUPERVISE_SECONDS: Final = 0.2
# What keeps a worker from starting shows sooner: one that lived this long had begun
# to serve, was killed from outside most likely, and its runs wait for the next one.
_SETTLED_SECONDS: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


def run_worker(state_dir: Path, pool: str, slots: int) -> int:
    """Work until told to stop (SIGTERM, SIGINT); return the exit status.

    SIGTERM lets what runs finish, for ``worker_stop_seconds`` of ``agent.toml``;
    what still runs then is killed with all of its processes, and the agent
    starts it again with its next execution.

    Args:
        state_dir: the node's state folder.
        pool: "runs", "rules", or "all" for a supervised one of each.
        slots: how many messages are worked on at once, per pool.

    Raises:
        HansaError: ``CONFIG_INVALID``; ``agent.toml`` cannot be read.
    """
    set_up_logging(f"worker-{pool}", node=_node_of(state_dir))
    if pool == "all":
        patience = load_settings(StateFolder(state_dir)).worker_stop_seconds
        return _Supervisor(state_dir.absolute(), slots, patience).run()
    # The supervisor has no use for Celery and all that comes with it.
    from node_agent.execution.pools import serve_pool

    return serve_pool(state_dir.absolute(), pool, slots)


class _Child:
    """One supervised worker program."""

    def __init__(self, words: Sequence[str], pool: str) -> None:
        self._words, self.pool = words, pool
        self._delays = self._fresh()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._next_start = 0.0

    def _fresh(self) -> Iterator[float]:
        return delays(random.random, first=0.2, most=4.0)

    def tend(self, now: float) -> None:
        """Start it if it does not run and its delay is over."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return
            self._process = None
            if now - self._started > _SETTLED_SECONDS:
                self._delays = self._fresh()
            self._next_start = now + next(self._delays)
            _log.warning("worker_died", pool=self.pool, status=status)
        if now >= self._next_start:
            self._process = subprocess.Popen(self._words, stdin=subprocess.DEVNULL)
            self._started = now
            _log.info("worker_started", pool=self.pool, pid=self._process.pid)

    def stop(self, give_up: float) -> None:
        """Wait for it, which was told to stop, until ``give_up``; then kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(give_up - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            _log.warning("worker_cut_short", pool=self.pool)
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Tell it to stop."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


class _Supervisor:
    """Keeps one program per pool alive."""

    def __init__(self, state_dir: Path, slots: int, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        program = [sys.executable, "-m", "node_agent.execution.worker"]
        self._children = [
            _Child([*program, str(state_dir), pool, str(slots), str(os.getpid())], pool) for pool in ("runs", "rules")
        ]
        self._stop = threading.Event()

    def run(self) -> int:
        """Supervise until a signal comes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while not self._stop.is_set():
            for child in self._children:
                child.tend(time.monotonic())
            self._stop.wait(_SUPERVISE_SECONDS)
        for child in self._children:
            child.terminate()
        give_up = time.monotonic() + self._patience_seconds
        for child in self._children:
            child.stop(give_up)
        _log.info("workers_stopped")
        return 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()


def _die_with(parent: int) -> None:
    """End with the supervisor, however that ends."""
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _node_of(state_dir: Path) -> str:
    """Return the node's name for the log; empty where nothing is known of it."""
    try:
        return load_config(StateFolder(state_dir)).node
    except HansaError:
        # Whoever needs the settings says what is wrong with them.
        return ""


def _main(argv: Sequence[str]) -> int:
    state_dir, pool, slots, parent = argv
    _die_with(int(parent))
    return run_worker(Path(state_dir), pool, int(slots))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
