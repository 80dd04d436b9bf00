"""A node's execution side with everything real but the agent: broker, workers, sandbox."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from node_agent.execution.broker import EmbeddedBroker
from node_agent.execution.celery_app import enqueue_run, make_app
from tests.support.agent_stub import StubAgent, StubRun

SUPPORT = Path(__file__).parent
GOOD = SUPPORT / "good_analysis"
BAD = SUPPORT / "bad_analyses"
LIMITS: Mapping[str, Any] = {
    "wall_seconds": 60,
    "memory_bytes": 512 << 20,
    "cpus": 2.0,
    "pids": 64,
    "scratch_bytes": 64 << 20,
    "summary_bytes": 1 << 20,
}


@dataclass
class Cluster:
    """One node's broker and workers, with a double as agent."""

    state: Path
    agent: StubAgent
    app: Celery
    broker: EmbeddedBroker
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_worker(self, pool: str) -> subprocess.Popen[bytes]:
        program = "import sys; from pathlib import Path; from node_agent.execution.worker import run_worker; "
        program += f"sys.exit(run_worker(Path({str(self.state)!r}), {pool!r}, 2))"
        with (self.state / "logs" / f"worker-{pool}.log").open("ab") as log:
            worker = subprocess.Popen([sys.executable, "-c", program], stderr=log, stdin=subprocess.DEVNULL)
        self.workers[pool] = worker
        return worker

    def stop_worker(self, pool: str, number: int = signal.SIGTERM) -> None:
        worker = self.workers.pop(pool)
        worker.send_signal(number)
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()

    def worker_log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.state / "logs").glob("worker-*.log")))

    def add_run(self, bundle: Path, **limits: Any) -> str:
        run_id = secrets.token_hex(16)
        data = self.state / "datasets" / "D" / "1"
        self.agent.runs[run_id] = StubRun(bundle, data, {"variants": "2:136608646:G:A"}, {**LIMITS, **limits})
        return run_id

    def enqueue(self, run_id: str) -> None:
        enqueue_run(self.app, run_id)

    def submit(self, bundle: Path, **limits: Any) -> str:
        run_id = self.add_run(bundle, **limits)
        self.enqueue(run_id)
        return run_id

    def run(self, bundle: Path, **limits: Any) -> tuple[str, dict[str, Any]]:
        run_id = self.submit(bundle, **limits)
        return run_id, self.agent.report(run_id)


def processes_of(state: Path) -> list[int]:
    """Return the processes that have something of the state folder mounted or open as their root or cwd."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if str(state) in (entry / "mountinfo").read_text():
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def node_folder() -> Iterator[Path]:
    """Make a state folder with one tiny dataset; its path is short enough for sockets."""
    state = Path(tempfile.mkdtemp(prefix="hansa-exec-", dir="/tmp"))
    for name in ("broker", "runs", "logs", "datasets/D/1"):
        (state / name).mkdir(parents=True, mode=0o700)
    data = state / "datasets" / "D" / "1"
    data.chmod(0o755)
    (data / "genotypes.txt").write_text("0123456789")
    try:
        yield state
    finally:
        shutil.rmtree(state)


@contextlib.contextmanager
def cluster(*pools: str, configured_broker: str | None = None) -> Iterator[Cluster]:
    """Start a broker, an agent's double and workers for ``pools``; stop all of it.

    With ``configured_broker``, a URL, that broker is used as an operator
    configures it, and none is started.
    """
    with node_folder() as state:
        broker = EmbeddedBroker(state / "broker")
        if configured_broker is None:
            broker.ensure_running()
        else:
            (state / "agent.toml").write_text(f'broker_url = "{configured_broker}"\n')
        agent = StubAgent(state)
        agent.start()
        started = Cluster(state, agent, make_app(configured_broker or broker.url), broker)
        try:
            for pool in pools:
                started.start_worker(pool)
            yield started
        finally:
            for pool in list(started.workers):
                started.stop_worker(pool)
            started.app.close()
            agent.stop()
            if configured_broker is None:
                broker.shut_down()


def bad_bundle(state: Path, name: str, targets: Mapping[str, Any] | None = None) -> Path:
    """Return a bundle that holds the misbehaving Snakefile ``name``."""
    bundle = state / "bundles" / name
    bundle.mkdir(parents=True)
    bundle.chmod(0o755)
    shutil.copy(GOOD / "manifest.json", bundle)
    shutil.copy(BAD / f"{name}.smk", bundle / "Snakefile")
    shutil.copy(BAD / "probes.py", bundle)
    (bundle / "targets.json").write_text(json.dumps(targets or {}))
    return bundle
