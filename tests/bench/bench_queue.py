"""How soon a node with a long queue is at work again after its agent was killed and its broker lost everything.

10,000 queued runs stand in the store, two messages on the broker. The broker is
killed with -9 and its files are deleted; the agent's parts are opened anew on
the store. Timed: from there to the first message that a worker could take and
claim, and how long one tick of the scheduler takes with that queue. Beside it,
the same with an empty queue but for the two runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from hansa.contract.ids import run_id
from node_agent.execution.broker import EmbeddedBroker
from node_agent.execution.celery_app import RUN_QUEUE, enqueue_run, make_app, waiting_runs
from node_agent.scheduling import RunQueue
from node_agent.store.models import RunRow
from tests.support.agent import NODE, Bench, job, make_bench, offer, open_bench

QUEUED = 10_000
PROJECTS = 10
TICKS = 20


def fill(session: Session, count: int, like: str) -> None:
    """Put ``count`` queued runs into the store that are as big as the run ``like``."""
    if not count:
        return
    first = session.execute(select(RunRow.__table__).where(RunRow.run_id == like)).mappings().one()
    session.execute(
        insert(RunRow),
        [
            {
                **first,
                "run_id": run_id(f"{number:08x}-0000-4000-8000-000000000000", NODE, 1),
                "project": f"project-{number % PROJECTS}",
                "created_at": first["created_at"] + timedelta(milliseconds=number + 1),
            }
            for number in range(count)
        ],
    )


async def first_claim(bench: Bench, broker: EmbeddedBroker) -> float:
    """Run the scheduler until a message is there and its run claimed; return the seconds."""
    began = time.perf_counter()
    broker.ensure_running()
    scheduler = asyncio.create_task(bench.scheduler.run())
    app = make_app(broker.url)
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(RUN_QUEUE)
        while True:
            # The bench's clock goes with the real one.
            try:
                message = await asyncio.to_thread(queue.get, timeout=0.2)
                break
            except queue.Empty:
                bench.now += timedelta(seconds=0.2)
        await bench.executions.claim(message.payload[0][0], "worker-1")
        took = time.perf_counter() - began
        queue.close()
    scheduler.cancel()
    app.close()
    return took


async def ticks(bench: Bench) -> float:
    """Return what one tick of the scheduler takes, in milliseconds."""
    found = []
    for _ in range(TICKS):
        began = time.perf_counter()
        await bench.step()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


async def measure(folder: Path, count: int) -> Mapping[str, Any]:
    """Lose broker and agent with ``count`` runs queued; return what was timed."""
    bench = make_bench(folder)
    broker = EmbeddedBroker(bench.state.broker)
    broker.ensure_running()
    for _ in range(3):
        run = await bench.offer(offer(job()))
    await bench.database.run(lambda session: fill(session, count, run.run_id))
    app = make_app(broker.url)
    queue = RunQueue(partial(enqueue_run, app), partial(waiting_runs, app))
    world, now = bench.world, bench.now
    bench.database.close()
    bench = open_bench(bench.state, world, queue=queue)
    await bench.step()
    assert waiting_runs(app) == bench.policy.admission.max_active_runs
    tick = await ticks(bench)
    # Both gone at one moment.
    bench.database.close()
    os.kill(int((bench.state.broker / "redis.pid").read_text()), signal.SIGKILL)
    shutil.rmtree(bench.state.broker / "appendonlydir")
    bench = open_bench(bench.state, world, queue=queue)
    bench.now = now + timedelta(seconds=1)
    took = await first_claim(bench, broker)
    bench.database.close()
    app.close()
    broker.shut_down()
    return {"first_claim_seconds": round(took, 2), "tick_ms": round(tick, 2)}


def main() -> int:
    """Measure and print one JSON object."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    results = {}
    for count in (0, QUEUED):
        with tempfile.TemporaryDirectory(prefix="hansa-queue-", dir="/tmp") as folder:
            results[str(count)] = asyncio.run(measure(Path(folder), count))
    sys.stdout.write(json.dumps({"queued": results, "mark_seconds": 10.0}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
