"""Each row of a node's log in turn (T-O3), and the ends of runs in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from hansa.contract.errors import RunReason
from hansa.contract.merkle import Frontier
from node_agent.audit.entries import Action, Entry
from node_agent.audit.log import _read, append, root_of
from node_agent.audit.trail import AuditTrail
from node_agent.audit.verification import Recount
from node_agent.executions import Finish, Outcome
from tests.support.agent import START, Bench, job, make_bench

pytestmark = pytest.mark.slow

ROWS = 1000
PAGE = 25
FLIPS = (
    ("audit_leaves", "body = CAST(body || ' ' AS BLOB)"),
    ("audit_leaves", "leaf_hash = zeroblob(32)"),
    ("audit_leaves", "at = '2020-01-01 00:00:00.000000'"),
    ("audit_subjects", "text = text || 'x'"),
    ("audit_subjects", "salt = zeroblob(32)"),
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


def fill(session: Session) -> None:
    for number in range(ROWS):
        facts = {"dataset": f"d{number}", "snapshot": "s"}
        append(session, Entry(action=Action.DATASET_ADDED, facts=facts, subjects={"by": "ada"}), START)


def first_wrong(session: Session, row: int) -> int | None:
    """Return what the recount of the log finds that has come to the page of ``row``."""
    begun = row - row % PAGE
    recount = Recount(tree=_read(session, lambda hash_at: Frontier.load(begun, hash_at)))
    recount.page(session, begun + PAGE)
    return None if recount.fault is None else recount.fault.index


async def test_flipping_any_one_of_a_thousand_rows_is_reported_with_its_exact_index(bench: Bench) -> None:
    await bench.database.run(fill)

    def flip_all(session: Session) -> list[int | None]:
        found = []
        for row in range(ROWS):
            table, change = FLIPS[row % len(FLIPS)]
            with session.begin_nested() as savepoint:
                session.execute(text(f'UPDATE {table} SET {change} WHERE "index" = :row'), {"row": row})  # noqa: S608
                found.append(first_wrong(session, row))
                savepoint.rollback()
        return found

    assert await bench.database.run(flip_all) == list(range(ROWS))
    whole = await AuditTrail(database=bench.database).verify()
    assert (whole["size"], whole["fault"]) == (ROWS, None)
    assert whole["root"] == (await bench.database.run(lambda session: root_of(session, ROWS))).hex()


async def last(bench: Bench) -> dict[str, object]:
    found = await AuditTrail(database=bench.database).entries(after=None, limit=1)
    entry: dict[str, object] = found["entries"][0]
    return entry


@pytest.mark.parametrize("reason", [RunReason.TIME_LIMIT, RunReason.SANDBOX_FAILED])
async def test_a_run_that_failed_is_in_the_log_with_its_reason(bench: Bench, reason: RunReason) -> None:
    run = await bench.running(job())
    await bench.executions.finish(
        Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.FAILED, reason=reason)
    )
    entry = await last(bench)
    facts = json.loads(str(entry["body"]))["facts"]
    assert (entry["action"], facts["run"], facts["state"], facts["reason"]) == (
        "run_ended",
        run.run_id,
        "FAILED",
        reason.value,
    )


async def test_a_summary_that_is_none_ends_its_run_in_the_log(bench: Bench) -> None:
    run = await bench.running(job())
    await bench.executions.finish(
        Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary="{}")
    )
    facts = json.loads(str((await last(bench))["body"]))["facts"]
    assert (facts["state"], facts["reason"]) == ("FAILED", "SUMMARY_INVALID")
