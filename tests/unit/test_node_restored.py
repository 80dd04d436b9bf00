"""A node whose own store was restored from a backup: it waits to be reconciled, and adopts what it had released."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from hansa.contract.envelope import from_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head
from hansa.contract.states import IllegalTransitionError, RunEvent
from node_agent.executions import Finish, Outcome
from node_agent.reporting import advance
from node_agent.store.models import RunRow
from node_agent.store.outbox import append_event, event_head, hash_at
from tests.support.agent import OPEN_POLICY, Bench, job, make_bench, offer
from tests.support.restored_bench import back_up, finished, raise_generation, released, restore, sent
from tests.support.scripted_coordinator import Coordinator, kinds, reconcile, recorded, told

MANUAL = {**OPEN_POLICY, "release": {"mode": "manual"}}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


async def test_a_restored_node_starts_and_releases_nothing_before_it_is_reconciled(
    bench: Bench, tmp_path: Path
) -> None:
    run = await bench.running(job())
    back_up(bench, tmp_path / "backup")
    await finished(bench, run)
    again = restore(bench, tmp_path / "backup")
    queued = await again.offer(offer(job()))
    await again.step()
    assert (await again.run(queued.run_id)).state == "QUEUED"
    failed = Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.FAILED)
    for end in (finished(again, run), again.executions.finish(failed)):
        with pytest.raises(HansaError) as caught:
            await end
        assert caught.value.reason is Reason.EXECUTION_SUPERSEDED
    assert (await again.run(run.run_id)).state == "RUNNING"
    again.database.close()


async def test_no_message_of_before_starts_a_run_of_a_restored_node_before_it_is_reconciled(
    bench: Bench, tmp_path: Path
) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    assert bench.enqueued == [run.run_id]
    back_up(bench, tmp_path / "backup")
    again = restore(bench, tmp_path / "backup")
    with pytest.raises(HansaError) as caught:
        await again.executions.claim(run.run_id, "worker-1")
    assert caught.value.reason is Reason.EXECUTION_SUPERSEDED
    assert (await again.run(run.run_id)).state == "STAGING"
    coordinator = Coordinator()
    await coordinator.attach(again)
    await coordinator.send(again, reconcile(recorded(run, "RUNNING", execution=4)))
    claimed = await again.executions.claim(run.run_id, "worker-1")
    assert claimed["execution"] > 4
    again.database.close()


async def test_nothing_that_waits_is_decided_before_a_restored_node_is_reconciled(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, MANUAL)
    run = await released(bench)
    assert run.state == "AWAITING_RELEASE"
    await bench.database.run(raise_generation)
    with pytest.raises(HansaError) as caught:
        await bench.decide(run.run_id, "RELEASE")
    assert caught.value.reason is Reason.NODE_NOT_RECONCILED
    bench.database.close()


@pytest.mark.parametrize("policy", [OPEN_POLICY, MANUAL], ids=["queued", "in the airlock"])
async def test_a_forgotten_release_is_adopted_as_it_was_signed_and_never_made_again(
    tmp_path: Path, policy: dict[str, object]
) -> None:
    bench = make_bench(tmp_path, policy)
    coordinator = Coordinator()
    await coordinator.attach(bench)
    run = await bench.running(job()) if policy is OPEN_POLICY else await released(bench)
    back_up(bench, tmp_path / "backup")
    if policy is OPEN_POLICY:
        await finished(bench, run)
    else:
        await bench.decide(run.run_id, "RELEASE")
    statement = (await bench.summary(run.run_id)).statement
    await coordinator.received_all(bench)

    again = restore(bench, tmp_path / "backup", policy=policy)
    proof = await coordinator.attach(again)
    assert (proof.event_head.seq, proof.hash_at_event_cursor) == (coordinator.events.seq, coordinator.events.hash)
    await coordinator.send(again, reconcile(recorded(run, "RELEASED", statement)))
    adopted, row = await again.run(run.run_id), await again.summary(run.run_id)
    assert (adopted.state, row.statement) == ("RELEASED", statement)
    events = await told(again, coordinator.events.seq)
    assert kinds(events) == ["inventory_reported", "summary_released", "run_reported"]
    assert statement is not None
    assert events[1].summary_released.statement.payload == from_json(statement).payload
    # The airlock still holds what left; else only the coordinator has it.
    assert len(await sent(again)) == (1 if policy is MANUAL else 0)

    again.now += timedelta(minutes=1)
    await again.step()
    assert (await again.run(run.run_id)).state == "RELEASED"
    with pytest.raises(HansaError):
        await finished(again, run)
    again.database.close()


async def test_ends_and_execution_numbers_are_adopted_and_other_runs_start_again(bench: Bench, tmp_path: Path) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    withheld, open_ = await bench.running(job()), await bench.running(job())
    back_up(bench, tmp_path / "backup")
    again = restore(bench, tmp_path / "backup")
    await coordinator.attach(again)
    await coordinator.send(again, reconcile(recorded(withheld, "WITHHELD"), more=True))
    await again.step()
    queued = await again.offer(offer(job()))
    await again.step()
    assert (await again.run(queued.run_id)).state == "QUEUED", "another part of it is to come"
    await coordinator.send(again, reconcile(recorded(open_, "RUNNING", execution=2)))
    assert (await again.run(withheld.run_id)).state == "WITHHELD"
    assert (await again.run(open_.run_id)).execution == 2
    await again.step()
    assert (await again.run(queued.run_id)).state == "STAGING"
    again.database.close()


async def test_jobs_are_told_again_where_both_were_restored_and_the_first_session_broke(
    bench: Bench, tmp_path: Path
) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    spec = job()
    await bench.offer(offer(spec))
    back_up(bench, tmp_path / "backup")
    again = restore(bench, tmp_path / "backup")
    coordinator.generation = 2
    for _ in range(2):
        # The second outbox begins anew where the first did: nothing of it had arrived.
        await coordinator.attach(again)
    await coordinator.send(again, reconcile())
    events = await told(again)
    assert kinds(events) == ["inventory_reported", "job_reported", "run_reported"]
    assert events[1].job_reported.job.payload == spec.to_bytes()
    again.database.close()


@pytest.mark.parametrize("lie", ["unsigned", "altered", "another run's"])
async def test_evil_no_release_is_adopted_that_this_node_has_not_signed(bench: Bench, tmp_path: Path, lie: str) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    run, other = await bench.running(job()), await released(bench)
    theirs = (await bench.summary(other.run_id)).statement
    assert theirs is not None
    back_up(bench, tmp_path / "backup")
    statement = (await bench.summary((await finished(bench, run)).run_id)).statement
    again = restore(bench, tmp_path / "backup")
    await coordinator.attach(again)
    made = recorded(run, "RELEASED", None if lie == "unsigned" else theirs if lie == "another run's" else statement)
    if lie == "altered":
        made.statement.payload = made.statement.payload.replace(b'"execution":1', b'"execution":2')
    await coordinator.send(again, reconcile(made))
    assert (await again.run(run.run_id)).state == "RUNNING"
    again.database.close()


async def test_what_was_recorded_for_an_earlier_restore_does_not_reconcile_a_later_one(
    bench: Bench, tmp_path: Path
) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    run = await bench.running(job())
    back_up(bench, tmp_path / "backup")
    again = restore(bench, tmp_path / "backup")
    await again.database.run(raise_generation)
    await coordinator.attach(again)
    queued = await again.offer(offer(job()))
    await coordinator.send(again, reconcile(recorded(run, "WITHHELD"), generation=2))
    await again.step()
    assert (await again.run(run.run_id)).state == "RUNNING"
    assert (await again.run(queued.run_id)).state == "QUEUED"
    await coordinator.send(again, reconcile(recorded(run, "WITHHELD"), generation=3))
    await again.step()
    assert (await again.run(run.run_id)).state == "WITHHELD"
    assert (await again.run(queued.run_id)).state == "STAGING"
    again.database.close()


async def test_evil_a_node_that_is_not_restored_adopts_nothing(bench: Bench) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    run = await bench.running(job())
    await coordinator.send(bench, reconcile(recorded(run, "WITHHELD", execution=9)))
    kept = await bench.run(run.run_id)
    assert (kept.state, kept.execution) == ("RUNNING", run.execution)
    assert kinds(await told(bench))[-2:] == ["inventory_reported", "run_reported"]


async def test_an_outbox_that_begins_anew_continues_what_was_received(bench: Bench) -> None:
    received = Head(41, b"h" * 32)
    await bench.database.run(raise_generation)
    await Coordinator(events=received).attach(bench)
    assert await bench.database.run(event_head) == received
    await bench.database.run(lambda session: append_event(session, b"next", bench.now))
    assert await bench.database.run(event_head) == received.after(b"next")
    assert await bench.database.run(lambda session: hash_at(session, 41)) == received.hash
    assert await bench.database.run(lambda session: hash_at(session, 40)) == b""


async def test_evil_our_own_release_is_not_undone_by_what_is_recorded(bench: Bench, tmp_path: Path) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    run = await released(bench)
    statement = (await bench.summary(run.run_id)).statement
    back_up(bench, tmp_path / "backup")
    again = restore(bench, tmp_path / "backup")
    await coordinator.attach(again)
    await coordinator.send(again, reconcile(recorded(run, "WITHHELD")))
    assert (await again.run(run.run_id)).state == "RELEASED"
    assert (await again.summary(run.run_id)).statement == statement
    again.database.close()


async def test_an_end_is_final_whatever_a_transaction_believes(bench: Bench) -> None:
    run = await bench.running(job())

    def work(session: Session) -> None:
        believed = session.get_one(RunRow, run.run_id)
        ended = update(RunRow).values(state="CANCELLED").execution_options(synchronize_session=False)
        session.execute(ended)
        with pytest.raises(IllegalTransitionError):
            advance(session, believed, RunEvent.COLLECT, reporter=bench.reporter, now=bench.now)

    await bench.database.run(work)
    assert (await bench.run(run.run_id)).state == "CANCELLED"
