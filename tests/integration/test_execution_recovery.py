"""What becomes of a run when a program of its node dies: agent, broker, workers and Snakemake are real."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.execution_cluster import processes_of
from tests.support.execution_node import IN_TWO_STEPS, PATIENCE, ExecutionNode, at_work, execution_node, kill_worker

pytestmark = pytest.mark.slow


async def finish(node: ExecutionNode, run_id: str, execution: int) -> None:
    """Let the run's rule end, and see it released."""
    await at_work(node, run_id, execution)
    (node.work(run_id, execution) / "go").touch()
    run = await node.until(run_id, lambda run: run.state in ("RELEASED", "FAILED"))
    assert (run.state, run.execution) == ("RELEASED", execution), node.log(run_id, execution)


async def test_a_run_whose_worker_is_killed_is_executed_anew_from_an_empty_folder() -> None:
    async with execution_node() as node:
        run_id = await node.submit()
        await at_work(node, run_id)
        (node.work(run_id) / "summary.json").write_text("half of it")
        kill_worker(node)
        await node.until(run_id, lambda run: run.execution == 2)
        assert not processes_of(node.work(run_id))
        await finish(node, run_id, 2)


async def test_a_run_outlives_its_agent_and_one_whose_worker_dies_meanwhile_does_not_wait_for_silence() -> None:
    async with execution_node() as node:
        kept = await node.submit()
        await at_work(node, kept)
        await node.kill_agent()
        await node.start_agent()
        await node.until(kept, lambda run: run.beat_at is not None and run.state == "RUNNING")
        await node.kill_agent()
        kill_worker(node)
        await node.start_agent()
        await finish(node, kept, 2)


async def test_a_cancelled_run_whose_worker_dies_is_cancelled_once_nothing_of_it_runs() -> None:
    async with execution_node() as node:
        run_id = await node.submit()
        await at_work(node, run_id)
        await node.kill_agent()
        # Nobody beats to an agent that is away: the worker cannot hear of the wish before it dies.
        kill_worker(node)
        await node.start_agent(cancelled=run_id)
        await node.until(run_id, lambda run: run.state == "CANCELLED")
        assert not processes_of(node.work(run_id))


async def test_cancelled_is_shown_once_the_box_is_empty() -> None:
    async with execution_node() as node:
        run_id = await node.submit()
        await at_work(node, run_id)
        await node.cancel(run_id)
        await node.until(run_id, lambda run: run.state == "CANCELLED")
        assert not processes_of(node.work(run_id))


async def test_a_rule_that_somebody_kills_from_outside_costs_an_execution_and_not_the_run() -> None:
    async with execution_node() as node:
        run_id = await node.submit()
        await at_work(node, run_id)
        inside = await process_inside(node, run_id, "bash")
        os.kill(inside, signal.SIGKILL)
        await node.until(run_id, lambda run: run.execution == 2)
        await finish(node, run_id, 2)


async def process_inside(node: ExecutionNode, run_id: str, name: str) -> int:
    """Return the newest process of this name in the run's boxes, once there is one."""
    async with asyncio.timeout(PATIENCE):
        while not (found := named(processes_of(node.work(run_id)), name)):  # noqa: ASYNC110 - the kernel rings no bell
            await asyncio.sleep(0.01)
    return max(found)


def named(pids: list[int], name: str) -> list[int]:
    """Return which of the processes have this name."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


async def test_where_the_analysis_allows_it_the_next_execution_goes_on_from_finished_rules() -> None:
    async with execution_node(IN_TWO_STEPS, resumable=True) as node:
        run_id = await node.submit()
        await at_work(node, run_id, rule=2)
        assert "counted" in node.log(run_id)
        (node.work(run_id) / "summary.json").write_text("half of it")
        kill_worker(node)
        await finish(node, run_id, 2)
        assert "begins with 1 files" in node.log(run_id, 2)
        assert "counted" not in node.log(run_id, 2)


async def test_a_broker_that_dies_and_forgets_everything_loses_no_run() -> None:
    async with execution_node(workers=False) as node:
        runs = [await node.submit() for _ in range(3)]
        for run_id in runs[:2]:
            await node.until(run_id, lambda run: run.state == "STAGING" and run.enqueued_at is not None)
        await asyncio.to_thread(lose_broker, node)
        node.start_worker()
        for run_id in runs:
            await finish(node, run_id, 1)


def lose_broker(node: ExecutionNode) -> None:
    """Kill the broker, delete all that it has written, and start it again."""
    kill_broker(node)
    node.broker.ensure_running()


def kill_broker(node: ExecutionNode) -> None:
    """Kill the broker and delete all that it has written."""
    os.kill(int((node.path / "broker" / "redis.pid").read_text()), signal.SIGKILL)
    shutil.rmtree(node.path / "broker" / "appendonlydir")


async def test_workers_whose_messages_end_while_the_broker_is_away_take_messages_again() -> None:
    async with execution_node() as node:
        log = node.path / "logs" / "worker-0.log"
        for _ in range(2):
            # As many as there are slots: a worker with none left does not listen to the broker.
            runs = [await node.submit() for _ in range(2)]
            for run_id in runs:
                await at_work(node, run_id)
            said = log.stat().st_size
            await asyncio.to_thread(kill_broker, node)
            for run_id in runs:
                (node.work(run_id) / "go").touch()
            for run_id in runs:
                await node.until(run_id, lambda run: run.state == "RELEASED")
            await both_pools_have_noticed(log, said)
            await asyncio.to_thread(node.broker.ensure_running)
        await finish(node, await node.submit(), 1)


async def both_pools_have_noticed(log: Path, begin: int) -> None:
    """Return once the pools could not tell the broker of an end, or found it away: in their log from ``begin`` on."""
    async with asyncio.timeout(PATIENCE):
        while {"runs", "rules"} - who_noticed(log.read_bytes()[begin:]):  # noqa: ASYNC110, ASYNC240 - a short log
            await asyncio.sleep(0.05)


def who_noticed(log: bytes) -> set[str]:
    """Return the pools that say in ``log`` that the broker is away."""
    lines = [line for line in log.splitlines() if b"Couldn't ack" in line or b"Connection to broker lost" in line]
    return {pool for pool in ("runs", "rules") if any(f'"worker-{pool}"'.encode() in line for line in lines)}


async def test_what_a_frozen_worker_cannot_end_is_ended_by_the_agent() -> None:
    async with execution_node() as node:
        run_id = await node.submit()
        await process_inside(node, run_id, "bash")
        # Frozen, it does not hear that the time is over.
        freeze_workers(node)
        node.ahead = timedelta(hours=2)
        await node.until(run_id, lambda run: run.state == "EXPIRED")
        async with asyncio.timeout(PATIENCE):
            while processes_of(node.work(run_id)):  # noqa: ASYNC110 - the kernel rings no bell
                await asyncio.sleep(0.05)
        thaw_workers(node)


def freeze_workers(node: ExecutionNode) -> None:
    """Stop the supervisor and the programs below it."""
    for pid in programs(node):
        os.kill(pid, signal.SIGSTOP)


def thaw_workers(node: ExecutionNode) -> None:
    """Let them go on."""
    for pid in programs(node):
        os.kill(pid, signal.SIGCONT)


def programs(node: ExecutionNode) -> list[int]:
    """Return the supervisor and the worker programs."""
    supervisor = node.workers[0].pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [supervisor, *(int(pid) for pid in children)]
