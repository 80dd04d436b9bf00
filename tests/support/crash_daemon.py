"""The real daemons, from their composition roots, with crash points: ``python -m tests.support.crash_daemon``.

A point is armed by a file that names it; the process that comes to it takes the
file away and kills itself with SIGKILL. The file is looked at at every point,
so that daemons stay up from one point to the next.

    crash_daemon PLAN coordinator STATE_DIR
    crash_daemon PLAN agent STATE_DIR
    crash_daemon PLAN worker STATE_DIR          # the supervisor of both pools
    crash_daemon PLAN pool STATE_DIR NAME SLOTS PARENT
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import coordinator.bootstrap
import node_agent.bootstrap
from coordinator.cli.main import main as coordinator_main
from coordinator.store.database import Database as CoordinatorDatabase
from hansa.runtime.logging import set_up_logging
from node_agent import scheduling
from node_agent.config import open_state_folder
from node_agent.execution import pools, worker
from node_agent.execution.agent_client import AgentClient, Claimed, Finish
from node_agent.execution.heart import Heart
from node_agent.execution.rules import run_rule
from node_agent.execution.runner import Runner
from node_agent.store.database import Database as NodeDatabase
from tests.support.crash_points import CrashingCoordinatorStore, CrashingNodeStore, Phase, Plan

SLOTS: Final = 2
PATIENCE_SECONDS: Final = 5
_BEAT_PATIENCE: Final = timedelta(seconds=7)


class FilePlan(Plan):
    """What the file at ``path`` arms: a point and a phase, on one line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def strikes(self, name: str, phase: Phase) -> bool:
        try:
            return self._path.read_text() == line_of(name, phase) and self._take()
        except FileNotFoundError:
            return False

    def _take(self) -> bool:
        # Of two processes that come to the point, one dies.
        with suppress(FileNotFoundError):
            self._path.replace(self._path.with_suffix(".struck"))
            return True
        return False


def line_of(name: str, phase: str) -> str:
    """Return what a plan's file says."""
    return f"{name} {phase}\n"


class KilledLife:
    """The life of a real process: its end is a SIGKILL."""

    def has_ended(self) -> bool:
        return False

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    async def nothing_more(self) -> Any:
        raise AssertionError("a killed process goes on")


class Points:
    """Named points of a program without a store."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def reach(self, name: str, phase: Phase) -> None:
        """Die here if it is armed."""
        if self._plan.strikes(name, phase):
            KilledLife().end()


class CrashingClient(AgentClient):
    """The worker's calls to the agent; ``before-work`` is before one is sent, ``after-commit`` before it is heard."""

    points: Points

    def claim(self, run_id: str, worker: str, token: str) -> Claimed:
        self.points.reach("worker.claim", Phase.BEFORE)
        claimed = super().claim(run_id, worker, token)
        self.points.reach("worker.claim", Phase.COMMITTED)
        return claimed

    def beat(self, run_id: str, execution: int) -> bool:
        self.points.reach("worker.beat", Phase.BEFORE)
        wanted = super().beat(run_id, execution)
        self.points.reach("worker.beat", Phase.COMMITTED)
        return wanted

    def finish(self, report: Finish) -> None:
        self.points.reach("worker.finish", Phase.BEFORE)
        super().finish(report)
        self.points.reach("worker.finish", Phase.COMMITTED)


class CrashingRunner(Runner):
    """The runner of a worker that may die with its sandbox."""

    points: Points

    def run(self, claimed: Claimed, heart: Heart) -> Finish | None:
        self.points.reach("worker.sandbox", Phase.BEFORE)
        report = super().run(claimed, heart)
        self.points.reach("worker.sandbox", Phase.COMMITTED)
        return report


def serve_coordinator(plan: Plan, state_dir: str) -> None:
    """Serve a coordinator whose store has crash points."""

    def open_store(url: str) -> CrashingCoordinatorStore:
        return CrashingCoordinatorStore(CoordinatorDatabase.open(url), plan, KilledLife())

    setattr(coordinator.bootstrap, "Database", SimpleNamespace(open=open_store))  # noqa: B010
    coordinator_main(["serve", state_dir])


def serve_agent(plan: Plan, state_dir: str) -> int:
    """Run an agent whose store has crash points."""

    def open_store(path: Path) -> CrashingNodeStore:
        return CrashingNodeStore(NodeDatabase.open(path), plan, KilledLife())

    setattr(node_agent.bootstrap, "Database", SimpleNamespace(open=open_store))  # noqa: B010
    # A worker that died is missed sooner: the tests wait for it often.
    setattr(scheduling, "BEAT_PATIENCE", _BEAT_PATIENCE)  # noqa: B010
    setattr(scheduling, "MESSAGE_PATIENCE", _BEAT_PATIENCE)  # noqa: B010
    return node_agent.bootstrap.serve(open_state_folder(Path(state_dir)))


def serve_pool(plan: Plan, state_dir: str, name: str, parent: str) -> int:
    """Serve one pool of a worker whose calls have crash points."""
    points = Points(plan)

    def rule(*arguments: Any) -> None:
        points.reach("worker.rule", Phase.BEFORE)
        run_rule(*arguments)
        points.reach("worker.rule", Phase.COMMITTED)

    CrashingClient.points = CrashingRunner.points = points
    for where, what in (("AgentClient", CrashingClient), ("Runner", CrashingRunner), ("run_rule", rule)):
        setattr(pools, where, what)
    worker._die_with(int(parent))
    return worker.run_worker(Path(state_dir), name, SLOTS)


class CrashingChild(worker._Child):
    """A pool's program, whose supervisor may die before and after it starts one."""

    points: Points

    def tend(self, now: float) -> None:
        due = self._process is None
        if due:
            self.points.reach("supervisor.start", Phase.BEFORE)
        super().tend(now)
        if due and self._process is not None:
            self.points.reach("supervisor.start", Phase.COMMITTED)


def supervise(plan_file: Path, plan: Plan, state_dir: str) -> int:
    """Supervise both pools of a node."""
    CrashingChild.points = Points(plan)
    supervisor = worker._Supervisor(Path(state_dir), SLOTS, PATIENCE_SECONDS)
    program = [sys.executable, "-m", "tests.support.crash_daemon", str(plan_file), "pool", state_dir]
    supervisor._children = [CrashingChild([*program, pool, str(os.getpid())], pool) for pool in ("runs", "rules")]
    set_up_logging("worker-all")
    return supervisor.run()


def main(argv: Sequence[str]) -> int:
    """Be the daemon that the arguments name."""
    plan_file, kind, state_dir, *rest = argv
    plan = FilePlan(Path(plan_file))
    if kind == "coordinator":
        serve_coordinator(plan, state_dir)
        return 0
    if kind == "agent":
        return serve_agent(plan, state_dir)
    if kind == "worker":
        return supervise(Path(plan_file), plan, state_dir)
    name, parent = rest
    return serve_pool(plan, state_dir, name, parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
