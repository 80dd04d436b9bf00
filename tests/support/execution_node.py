"""A node without its link: real store, scheduler, local API, broker, workers, sandbox and Snakemake.

``kill_agent`` and ``start_agent`` are an agent that is killed and comes back:
what it had not committed is gone, its workers and broker live on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from hansa.runtime.clock import utc_now
from hansa.v1 import node_service_pb2
from node_agent.audit.trail import AuditTrail
from node_agent.backups import Backups
from node_agent.config import create_state_folder, short_path
from node_agent.datasets import Datasets
from node_agent.execution.broker import EmbeddedBroker
from node_agent.execution.celery_app import enqueue_run, make_app, waiting_runs
from node_agent.execution.presence import Premises
from node_agent.leftovers import Leftovers
from node_agent.link.encoding import WireReporter
from node_agent.local_api.server import LocalApi
from node_agent.local_api.views import Views
from node_agent.policy.book import PolicyBook
from node_agent.policy.changes import PolicyChanges
from node_agent.scheduling import RunQueue
from node_agent.store.models import RunRow
from node_agent.store.outbox import command_cursor
from tests.support.agent import (
    MANIFEST,
    OPEN_POLICY,
    Bench,
    approved_by,
    collected,
    job,
    make_world,
    offer,
    open_bench,
    standing,
)
from tests.support.trust_world import TrustWorld

PATIENCE = 120.0
_HOUR = timedelta(hours=1)
# A rule that lasts until somebody writes ``go`` into its scratch folder.
WAITS = """
rule all:
    input: "summary.json"

rule wait:
    output: "summary.json"
    params: bundle=config["bundle"]
    shell: "while [ ! -e go ]; do sleep 0.02; done; cp {params.bundle}/counts.json {output}"
"""

# The same, after a rule that takes its time to compute something once.
IN_TWO_STEPS = """
rule all:
    input: "summary.json"

rule count:
    output: "counts/of.txt"
    shell: "echo counted; echo 42 > {output}"

rule wait:
    input: "counts/of.txt"
    output: "summary.json"
    params: bundle=config["bundle"]
    shell: "while [ ! -e go ]; do sleep 0.02; done; grep -q 42 {input}; cp {params.bundle}/counts.json {output}"
"""


def bundle_of(snakefile: str, *, resumable: bool = False) -> Mapping[str, bytes]:
    """Return a bundle with this Snakefile and an honest summary to copy."""
    return {
        "manifest.json": json.dumps({**MANIFEST, "resumable": resumable}).encode(),
        "Snakefile": snakefile.encode(),
        "counts.json": collected().encode(),
    }


@dataclass
class ExecutionNode:
    """The node; all of it but its workers and broker runs in the test's event loop."""

    bench: Bench
    broker: EmbeddedBroker
    world: TrustWorld
    policy: Mapping[str, Any]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # How far the agent's clock is ahead of the workers'.
    ahead: timedelta = timedelta()
    _agent: list[asyncio.Task[None]] = field(default_factory=list)
    _server: uvicorn.Server | None = None

    @property
    def path(self) -> Path:
        return self.bench.state.path

    async def start_agent(self, cancelled: str = "") -> None:
        """Start the agent on the store; ``cancelled`` is a run whose cancellation it first hears of."""
        app = make_app(self.broker.url)
        premises = Premises(self.path)
        self.bench = open_bench(
            self.bench.state,
            self.world,
            self.policy,
            premises=premises,
            queue=RunQueue(partial(enqueue_run, app), partial(waiting_runs, app)),
        )
        self.bench.now = utc_now()
        if cancelled:
            await self.cancel(cancelled)
        leftovers = Leftovers(database=self.bench.database, premises=premises)
        self.bench.state.socket.unlink(missing_ok=True)
        config = uvicorn.Config(_api(self.bench).app(), log_config=None, access_log=False, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        loops: list[Awaitable[None]] = [self._clock(), self.bench.scheduler.run(), leftovers.run(), self._serve()]
        self._agent = [asyncio.ensure_future(loop) for loop in loops]

    async def _clock(self) -> None:
        while True:
            self.bench.now = utc_now() + self.ahead
            await asyncio.sleep(0.01)

    async def _serve(self) -> None:
        assert self._server is not None
        with short_path(self.bench.state.socket) as name, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
            try:
                await self._server._serve(sockets=[listener])
            finally:
                for one in getattr(self._server, "servers", ()):
                    one.close()

    async def kill_agent(self) -> None:
        for task in self._agent:
            task.cancel()
        await asyncio.gather(*self._agent, return_exceptions=True)
        self._agent = []
        self.bench.database.close()

    def start_worker(self, pool: str = "all") -> subprocess.Popen[bytes]:
        program = "import sys; from pathlib import Path; from node_agent.execution.worker import run_worker; "
        program += f"sys.exit(run_worker(Path({str(self.path)!r}), {pool!r}, 2))"
        with (self.path / "logs" / f"worker-{len(self.workers)}.log").open("ab") as log:
            worker = subprocess.Popen([sys.executable, "-c", program], stderr=log, stdin=subprocess.DEVNULL)
        self.workers.append(worker)
        return worker

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.workers.clear()

    async def submit(self, **changes: Any) -> str:
        """Offer a job; return its run's id."""
        start = utc_now()
        spec = job(
            **{
                "analysis": self.world.analysis,
                "not_before": start,
                "not_after": start.replace(microsecond=0) + changes.pop("deadline", _HOUR),
                **changes,
            }
        )
        run = await self.bench.offer(offer(spec))
        assert run.state != "DECLINED", run.reason
        self.bench.bells.ring()
        return run.run_id

    async def cancel(self, run_id: str) -> None:
        """Apply the coordinator's wish to cancel."""
        cursor = await self.bench.database.run(command_cursor)
        wish = node_service_pb2.CommandBody(cancel=node_service_pb2.Cancel(run_id=run_id, attempt=1))
        command = node_service_pb2.Command(
            epoch=1, seq=cursor.seq + 1, prev_hash=cursor.hash, body=wish.SerializeToString()
        )
        await self.bench.database.run(lambda session: self.bench.commands.apply(session, command, self.bench.now))

    async def until(self, run_id: str, true: Callable[[RunRow], bool]) -> RunRow:
        """Return the run once ``true`` of it."""
        async with asyncio.timeout(PATIENCE):
            while not true(run := await self.bench.run(run_id)):  # noqa: ASYNC110 - the store rings no bell
                await asyncio.sleep(0.01)
        return run

    def work(self, run_id: str, execution: int = 1) -> Path:
        return self.path / "runs" / run_id / str(execution)

    def log(self, run_id: str, execution: int = 1) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.path / "runs" / run_id / f"{execution}.ctl" / "log").read_text(errors="replace")
        return ""


async def at_work(node: ExecutionNode, run_id: str, execution: int = 1, rule: int = 1) -> None:
    """Return when the execution is at its rule number ``rule``, which waits in its box."""
    lock = node.work(run_id, execution).with_name(f"{execution}.ctl") / f"rule-{rule}.lock"
    await node.until(run_id, lambda run: run.execution == execution and lock.exists())


def kill_worker(node: ExecutionNode) -> None:
    """Kill the program that is at the runs, below the supervisor."""
    supervisor = node.workers[0].pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    (worker,) = (pid for pid in children if b"\0runs\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)


def _api(bench: Bench) -> LocalApi:
    database, state = bench.database, bench.state
    state.policy_file.touch()
    return LocalApi(
        executions=bench.executions,
        datasets=Datasets(
            database=database, state=state, reporter=WireReporter("FI"), bells=bench.bells, clock=lambda: bench.now
        ),
        airlock=bench.airlock,
        approvals=bench.approvals,
        policy=PolicyChanges(book=PolicyBook(state.policy_file), database=database, clock=lambda: bench.now),
        audit=AuditTrail(database=database),
        backups=Backups(state=state, clock=lambda: bench.now),
        views=Views(
            node="FI",
            federation="demo",
            state=state,
            database=database,
            link=dict,
            policy_digest=str,
            trust=dict,
        ),
    )


@contextlib.asynccontextmanager
async def execution_node(
    snakefile: str = WAITS,
    policy: Mapping[str, Any] = OPEN_POLICY,
    *,
    workers: bool = True,
    resumable: bool = False,
) -> AsyncIterator[ExecutionNode]:
    """Start a node whose one analysis is ``snakefile``; stop all of it."""
    folder = Path(tempfile.mkdtemp(prefix="hansa-node-", dir="/tmp"))
    now = utc_now()
    world = make_world(folder / "analysis", now, bundle_of(snakefile, resumable=resumable))
    bench = open_bench(create_state_folder(folder / "state"), world, policy)
    bench.now = now
    approval = standing(analysis=world.analysis, not_before=now, not_after=now + timedelta(days=300))
    await bench.approvals.add(approved_by(approval))
    bench.database.close()
    broker = EmbeddedBroker(bench.state.broker)
    await asyncio.to_thread(broker.ensure_running)
    node = ExecutionNode(bench, broker, world, policy)
    try:
        await node.start_agent()
        if workers:
            node.start_worker()
        yield node
    finally:
        # The workers first: one that has something to report waits for its agent.
        await asyncio.to_thread(node.stop_workers)
        await node.kill_agent()
        await asyncio.to_thread(broker.shut_down)
        shutil.rmtree(folder)
