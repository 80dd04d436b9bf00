"""A node's store put back to what it was, by an operator's restore, which raises the generation, or by hand.

With it, what the node does before and after: its runs end, and what was released leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy.orm import Session

from hansa.runtime.sqlite import sqlite_module
from node_agent.airlock.released import ReleasedSummary
from node_agent.executions import Finish, Outcome
from node_agent.spool.uploader import Uploader
from node_agent.store.models import RunRow
from node_agent.store.outbox import store_row
from tests.support.agent import OPEN_POLICY, Bench, collected, job, open_bench

# Also how long a test waits to see that nothing is sent.
_SPOOL_SECONDS: Final = 5.0


def back_up(bench: Bench, to: Path) -> None:
    """Copy the bench's store as it is now to ``to``."""
    with bench.database._engine.connect() as connection:
        source = connection.connection.driver_connection
        target = sqlite_module().connect(str(to))
        assert source is not None
        source.backup(target)
        target.close()


def restore(bench: Bench, backup: Path, *, raised: bool = True, policy: Mapping[str, Any] = OPEN_POLICY) -> Bench:
    """Close the bench, put ``backup`` in the place of its store, and open it again."""
    bench.database.close()
    for name in ("-wal", "-shm"):
        Path(f"{bench.state.database}{name}").unlink(missing_ok=True)
    bench.state.database.write_bytes(backup.read_bytes())
    again = open_bench(bench.state, bench.world, policy)
    again.now = bench.now
    if raised:
        again.database._transact(raise_generation)
    return again


def raise_generation(session: Session) -> None:
    """Do what ``hansa-node restore`` does to the store's own row."""
    store_row(session).generation += 1


async def finished(bench: Bench, run: RunRow, execution: int | None = None) -> RunRow:
    """End an execution of the run with a summary, the present one if no other is named."""
    number = run.execution if execution is None else execution
    await bench.executions.finish(
        Finish(run_id=run.run_id, execution=number, outcome=Outcome.SUMMARY, summary=collected())
    )
    return await bench.run(run.run_id)


async def released(bench: Bench) -> RunRow:
    """Run a new job to its summary."""
    return await finished(bench, await bench.running(job()))


async def sent(bench: Bench) -> list[ReleasedSummary]:
    """Return what the spool sends now."""
    found: list[ReleasedSummary] = []
    was_sent = asyncio.Event()

    async def send(summary: ReleasedSummary) -> None:
        found.append(summary)
        was_sent.set()

    uploader = Uploader(database=bench.database, bells=bench.bells, clock=lambda: bench.now)
    task = asyncio.create_task(uploader.run(send))
    bench.bells.spool.set()
    with suppress(TimeoutError):
        async with asyncio.timeout(_SPOOL_SECONDS):
            await was_sent.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return found
