"""A double of the agent's API for workers: the real HTTP, on a real unix socket.

It keeps to the contract of the agent's worker calls (claim grants a run once
per execution, a higher execution supersedes the lower ones, finish is heard
once) and stores nothing. ``stop`` and ``start`` again are an agent that was
killed and came back.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

_PATIENCE_SECONDS = 60.0


@dataclass
class StubRun:
    """What the double knows of one run."""

    bundle: Path
    data: Path
    parameters: Mapping[str, str]
    limits: Mapping[str, Any]
    execution: int = 1
    claimed_by: list[str] = field(default_factory=list)
    beats: int = 0
    cancel: bool = False
    open: bool = False
    reports: list[dict[str, Any]] = field(default_factory=list)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = 32


class StubAgent:
    """Answers workers on ``<state>/agent.sock``."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.runs: dict[str, StubRun] = {}
        self.refused_claims: list[str] = []
        self._changed = threading.Condition()
        self._server: _Server | None = None

    @property
    def _socket(self) -> Path:
        return self.state / "agent.sock"

    def start(self) -> None:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = stub._answer(self.path.rsplit("/", 1)[1], body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def address_string(self) -> str:
                return "worker"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                return

        self._server = _Server(str(self._socket), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            self._socket.unlink(missing_ok=True)

    def _answer(self, call: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._changed:
            try:
                calls = {"claim": self._claim, "beat": self._beat, "finish": self._finish}
                return calls[call](body)
            finally:
                self._changed.notify_all()

    def _claim(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run = self.runs.get(body["run_id"])
        if run is None or run.open or run.reports or len(run.claimed_by) >= run.execution:
            self.refused_claims.append(body["run_id"])
            return 409, {"reason": "EXECUTION_SUPERSEDED"}
        run.open = True
        run.claimed_by.append(body["worker"])
        return 200, {
            "run_id": body["run_id"],
            "execution": run.execution,
            "work_dir": str(self.work_dir(body["run_id"], run.execution)),
            "bundle_dir": str(run.bundle),
            "snakefile": "Snakefile",
            "parameters": dict(run.parameters),
            "snapshot_dir": str(run.data),
            "limits": dict(run.limits),
            "deadline": (datetime.now(UTC) + timedelta(minutes=10)).isoformat(),
        }

    def _beat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run = self.runs[body["run_id"]]
        if body["execution"] != run.execution or not run.open:
            return 409, {"reason": "EXECUTION_SUPERSEDED"}
        run.beats += 1
        return 200, {"cancel": run.cancel}

    def _finish(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run = self.runs[body["run_id"]]
        if body["execution"] != run.execution or not run.open:
            return 409, {"reason": "EXECUTION_SUPERSEDED"}
        run.open = False
        run.reports.append(body)
        return 200, {}

    def lose_lease(self, run_id: str) -> None:
        """Give the run its next execution number, as the agent does when a worker is silent."""
        with self._changed:
            self.runs[run_id].execution += 1
            self.runs[run_id].open = False

    def work_dir(self, run_id: str, execution: int = 1) -> Path:
        return self.state / "runs" / run_id / str(execution)

    def control_dir(self, run_id: str, execution: int = 1) -> Path:
        return self.state / "runs" / run_id / f"{execution}.ctl"

    def log(self, run_id: str, execution: int = 1) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.control_dir(run_id, execution) / "log").read_text(errors="replace")
        return ""

    def wait(self, condition: Callable[[], bool], patience: float = _PATIENCE_SECONDS) -> None:
        """Return when ``condition`` holds; it is looked at after each call of a worker, and now and then."""
        give_up = time.monotonic() + patience
        with self._changed:
            while not condition():
                if time.monotonic() > give_up:
                    raise TimeoutError("the condition never held")
                self._changed.wait(0.05)

    def report(self, run_id: str) -> dict[str, Any]:
        """Return what was reported of the run, once it has been."""
        self.wait(lambda: bool(self.runs[run_id].reports))
        return self.runs[run_id].reports[0]


@contextlib.contextmanager
def stub_agent(state: Path) -> Iterator[StubAgent]:
    agent = StubAgent(state)
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()
