"""How soon a node's executions recover: a worker killed with -9, and a run that is cancelled.

Agent, broker, workers, sandbox and Snakemake are real; the link is not there.
Timed, round by round: from the kill of the worker to the next execution's
RUNNING, and from the wish to cancel to CANCELLED, when no process of the run may be left.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import sys
import time

import structlog

from tests.support.execution_cluster import processes_of
from tests.support.execution_node import ExecutionNode, at_work, execution_node, kill_worker

CANCELS = 20
DEATHS = 8


def summed_up(seconds: list[float]) -> dict[str, float]:
    """Return what is told of some times."""
    ordered = sorted(seconds)
    p95 = ordered[min(round(0.95 * len(ordered)), len(ordered) - 1)]
    return {"median": round(statistics.median(ordered), 2), "p95": round(p95, 2), "most": round(ordered[-1], 2)}


async def cancel(node: ExecutionNode) -> tuple[float, int]:
    """Cancel a run at work; return the seconds to CANCELLED, and how many of its processes were left then."""
    run_id = await node.submit()
    await at_work(node, run_id)
    began = time.perf_counter()
    await node.cancel(run_id)
    await node.until(run_id, lambda run: run.state == "CANCELLED")
    took = time.perf_counter() - began
    return took, len(processes_of(node.work(run_id)))


async def death(node: ExecutionNode) -> float:
    """Kill the worker of a run at work; return the seconds to its next execution."""
    run_id = await node.submit()
    await at_work(node, run_id)
    began = time.perf_counter()
    kill_worker(node)
    await node.until(run_id, lambda run: run.execution > 1 and run.state == "RUNNING")
    took = time.perf_counter() - began
    await node.cancel(run_id)
    await node.until(run_id, lambda run: run.state == "CANCELLED")
    return took


async def measure() -> dict[str, object]:
    """Return all figures."""
    async with execution_node() as node:
        cancels = [await cancel(node) for _ in range(CANCELS)]
        deaths = [await death(node) for _ in range(DEATHS)]
    return {
        "cancel_seconds": summed_up([took for took, _ in cancels]),
        "processes_left_when_cancelled": sum(left for _, left in cancels),
        "worker_death_to_next_execution_seconds": summed_up(deaths),
        "rounds": {"cancels": CANCELS, "deaths": DEATHS},
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def main() -> int:
    """Measure and print one JSON object."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sys.stdout.write(json.dumps(asyncio.run(measure()), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
