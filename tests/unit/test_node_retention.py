"""What the node's outbox deletes, the coordinator has had for thirty days; what it owes is never dropped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.outbox import heads_agree
from hansa.contract.retention import KEPT_AFTER_ACK
from node_agent.reporting import Acknowledged
from node_agent.retention import Backlog, Retention
from node_agent.store.models import EventRow
from node_agent.store.outbox import append_event, event_head, events_after, hash_at
from tests.support.agent import Bench, make_bench

COUNT = 10


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def told() -> Acknowledged:
    return Acknowledged()


@pytest.fixture
def retention(bench: Bench, told: Acknowledged) -> Retention:
    bench.database.run_sync(lambda session: fill(session, bench))
    return Retention(
        database=bench.database,
        state=bench.state,
        policy=lambda: bench.policy,
        clock=lambda: bench.now,
        acknowledged=told,
    )


def fill(session: Session, bench: Bench) -> None:
    for number in range(COUNT):
        append_event(session, b"event %d" % number, bench.now)


def held(bench: Bench) -> list[int]:
    return bench.database.run_sync(lambda session: list(session.scalars(select(EventRow.seq).order_by(EventRow.seq))))


def later(bench: Bench, span: timedelta) -> None:
    bench.now += span


async def test_events_go_thirty_days_after_their_acknowledgement_and_the_chain_can_still_be_proven(
    bench: Bench, told: Acknowledged, retention: Retention
) -> None:
    cursor = bench.database.run_sync(event_head)
    told.upto = 6
    await retention.purge()
    later(bench, KEPT_AFTER_ACK)
    await retention.purge()
    assert held(bench) == list(range(1, COUNT + 1))  # not a moment too early
    later(bench, timedelta(seconds=1))
    await retention.purge()
    assert held(bench) == list(range(6, COUNT + 1))

    def proof(session: Session) -> bool:
        at_cursor = hash_at(session, cursor.seq)
        return heads_agree(cursor, event_head(session), at_cursor)

    assert bench.database.run_sync(proof)
    assert len(bench.database.run_sync(lambda session: events_after(session, 6, COUNT))) == COUNT - 6


async def test_what_was_never_acknowledged_stays_however_old_it_is(
    bench: Bench, told: Acknowledged, retention: Retention
) -> None:
    for upto in (None, 0):
        told.upto = upto
        later(bench, 10 * KEPT_AFTER_ACK)
        await retention.purge()
        await retention.purge()
        assert held(bench) == list(range(1, COUNT + 1))


async def test_the_last_event_stays_since_the_next_continues_it(
    bench: Bench, told: Acknowledged, retention: Retention
) -> None:
    told.upto = COUNT
    await retention.purge()
    later(bench, 2 * KEPT_AFTER_ACK)
    await retention.purge()
    assert held(bench) == [COUNT]


async def test_what_a_restored_coordinator_lacks_is_kept_for_it_again(
    bench: Bench, told: Acknowledged, retention: Retention
) -> None:
    told.upto = 8
    await retention.purge()
    told.upto = 3  # the session after its restore
    later(bench, 2 * KEPT_AFTER_ACK)
    await retention.purge()
    assert set(range(4, COUNT + 1)) <= set(held(bench))


async def test_nothing_is_deleted_before_the_coordinator_has_said_what_it_has(
    bench: Bench, told: Acknowledged, retention: Retention
) -> None:
    told.upto = 8
    await retention.purge()
    told.upto = None  # the agent was started anew
    later(bench, 2 * KEPT_AFTER_ACK)
    await retention.purge()
    assert held(bench) == list(range(1, COUNT + 1))


async def test_from_a_bound_on_what_is_owed_no_new_work_is_taken_and_nothing_is_dropped(
    bench: Bench, told: Acknowledged, retention: Retention
) -> None:
    backlog = Backlog(database=bench.database, acknowledged=told, most_bytes=50)
    found = []
    for told.upto in (None, 0, COUNT - 1, COUNT):
        await backlog.count()
        found.append(backlog.is_full)
    assert found == [True, True, False, False]
    await retention.purge()
    assert held(bench) == list(range(1, COUNT + 1))
