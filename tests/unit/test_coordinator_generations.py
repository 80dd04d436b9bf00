"""A node whose store was restored, and a coordinator that was: what the coordinator tells, takes back, and refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from coordinator.domain.membership import NodeState
from coordinator.services.nodes import Act, resume_node
from coordinator.services.reconciliation import reconcile_node
from coordinator.services.sessions import Sessions
from coordinator.store.job_models import CommandRow, EventRow, JobRow, RunRow, StatementRow, SummaryRow
from coordinator.store.nodes import NodeRepository
from coordinator.store.people_models import AuditRow, FederationRow, NodeRow
from hansa.contract.attach import next_epoch
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.states import JobState, RunState
from hansa.v1 import node_service_pb2 as wire
from tests.support.job_world import START, JobWorld, open_world, released
from tests.support.scripted_node import NodeStore, PlainNode, inventory, release, report, run_at

NONCE = b"n" * 32
FI = NodeId("FI")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[JobWorld]:
    with open_world(f"sqlite:///{tmp_path}/c.db") as made:
        yield made
        await made.desk.settled()


@pytest.fixture
async def sessions(world: JobWorld) -> AsyncIterator[Sessions]:
    made = Sessions(world.desk, lambda: NONCE)
    yield made
    await made.close()


async def attached(sessions: Sessions, store: NodeStore) -> PlainNode:
    node = PlainNode(sessions, "FI", store)
    await node.attach()
    return node


async def refused(sessions: Sessions, store: NodeStore) -> Reason | None:
    node = PlainNode(sessions, "FI", store)
    await node.send(store.hello())
    await node.receive("fenced")
    return await node.ended()


def reconciled(world: JobWorld) -> None:
    world.database.run_sync(lambda session: reconcile_node(session, FI, Act("op1", START)))


def state_of(world: JobWorld) -> tuple[NodeState, str]:
    node = world.database.run_sync(lambda session: NodeRepository(session).get("FI"))
    return node.state, node.reason


async def one_released_one_open(world: JobWorld, sessions: Sessions) -> tuple[str, str, wire.EventBody]:
    """Return two jobs, of which FI has released the first, and the event of that release."""
    first, second = await world.submit(), await world.submit()
    node = await attached(sessions, NodeStore())
    for _ in range(2):
        await node.take_command()
    content = released(ac=41)
    told = release(await world.statement("FI", first, content), content)
    reports = [
        report(run_at(first.job_id, "FI"), "RELEASED", execution=1),
        report(run_at(second.job_id, "FI"), "RUNNING", execution=2),
    ]
    await node.tell(inventory(("FI-aisnp", "FI", "GRCh37", "sha256:" + "0" * 64)), told, *reports)
    await node.hang_up()
    return first.job_id, second.job_id, told


async def test_a_restored_node_is_set_apart_until_two_people_reconcile_it(world: JobWorld, sessions: Sessions) -> None:
    first, second, told = await one_released_one_open(world, sessions)
    restored = NodeStore(generation=2)
    assert await refused(sessions, restored) is Reason.NODE_QUARANTINED
    assert state_of(world)[0] is NodeState.QUARANTINED
    assert "reconciled" in state_of(world)[1]

    # Resuming it is not enough.
    world.database.run_sync(lambda session: resume_node(session, FI, Act("op1", START)))
    assert await refused(sessions, restored) is Reason.NODE_QUARANTINED

    reconciled(world)
    node = PlainNode(sessions, "FI", restored)
    await node.send(restored.hello())
    welcome = (await node.receive("welcome")).welcome
    node.epoch = welcome.epoch
    # As a node does whose store was restored: it begins behind what was received and what it had acknowledged.
    proof = wire.HeadProof(
        epoch=welcome.epoch,
        nonce=welcome.nonce,
        event_head=welcome.event_cursor,
        hash_at_event_cursor=welcome.event_cursor.hash,
        command_cursor=welcome.command_base,
    )
    await node.send(wire.NodeFrame(head_proof=proof))
    bodies = [wire.CommandBody.FromString((await node.receive("command")).command.body) for _ in range(3)]
    assert sorted(body.offer.job_id for body in bodies[:2]) == sorted([first, second])
    told_runs = {run.run_id: run for run in bodies[2].reconcile.runs}
    assert (bodies[2].reconcile.generation, bodies[2].reconcile.more) == (2, False)
    ended, open_ = told_runs[run_at(first, "FI")], told_runs[run_at(second, "FI")]
    assert ended.statement == told.summary_released.statement
    assert (open_.execution, open_.HasField("statement")) == (2, False)
    acts = world.database.run_sync(lambda session: session.scalars(select(AuditRow.action)).all())
    assert "node_reconciled" in acts
    await node.hang_up()

    # Once: the next restored store is another one.
    assert await refused(sessions, NodeStore(generation=3)) is Reason.NODE_QUARANTINED


async def test_a_node_that_was_put_back_by_hand_is_not_reconciled(world: JobWorld, sessions: Sessions) -> None:
    await one_released_one_open(world, sessions)
    by_hand = await attached(sessions, NodeStore())
    await by_hand.receive("fenced")
    assert await by_hand.ended() is Reason.NODE_QUARANTINED
    reconciled(world)
    assert await refused(sessions, NodeStore()) is Reason.NODE_QUARANTINED
    assert "hansa-node restore" in state_of(world)[1]


async def test_a_node_that_forgot_commands_it_had_acknowledged_is_set_apart(
    world: JobWorld, sessions: Sessions
) -> None:
    await world.submit()
    node = await attached(sessions, NodeStore())
    await node.take_command()
    await node.heartbeat()
    await node.hang_up()
    world.database.run_sync(lambda session: session.execute(update(NodeRow).values(event_cursor_seq=0)))
    again = await attached(sessions, NodeStore())
    await again.receive("fenced")
    assert await again.ended() is Reason.NODE_QUARANTINED
    assert "acknowledged" in state_of(world)[1]


async def test_a_summary_without_its_statement_is_dropped_when_a_node_is_reconciled(
    world: JobWorld, sessions: Sessions
) -> None:
    job = await world.submit()
    await world.upload("FI", job, released(ac=41))
    node = await attached(sessions, NodeStore())
    await node.take_command()
    await node.tell(inventory(("FI-aisnp", "FI", "GRCh37", "sha256:" + "0" * 64)))
    await node.hang_up()
    assert await refused(sessions, NodeStore(generation=2)) is Reason.NODE_QUARANTINED
    reconciled(world)
    again = PlainNode(sessions, "FI", NodeStore(generation=2))
    await again.send(again.store.hello())
    await again.receive("welcome")
    assert world.database.run_sync(lambda session: session.scalars(select(SummaryRow.run_id)).all()) == []
    await again.hang_up()


# --- the coordinator was restored ------------------------------------------------------------


def forget(session: Session, job_id: str) -> None:
    """Put the store back to before the job: as a restored backup has it."""
    runs = select(RunRow.run_id).where(RunRow.job_id == job_id)
    for table in (StatementRow, SummaryRow):
        session.execute(delete(table).where(table.run_id.in_(runs)))
    session.execute(delete(RunRow).where(RunRow.job_id == job_id))
    session.execute(delete(JobRow).where(JobRow.job_id == job_id))
    session.execute(delete(EventRow))
    session.execute(delete(CommandRow))
    session.execute(update(NodeRow).values(event_cursor_seq=0, event_cursor_hash=b"\0" * 32))
    session.execute(update(FederationRow).values(generation=2))


async def test_a_forgotten_job_is_taken_back_from_a_node_with_its_release(world: JobWorld, sessions: Sessions) -> None:
    job = await world.submit()
    envelope = world.signed(job_id=job.job_id)
    signed = await world.desk.read(lambda session: session.get_one(JobRow, job.job_id))
    content = released(ac=41)
    told = release(await world.statement("FI", job, content), content)
    reported = wire.EventBody(job_reported=wire.JobReported(job=told.summary_released.statement))
    reported.job_reported.job.payload_type, reported.job_reported.job.payload = signed.payload_type, signed.payload
    reported.job_reported.job.signatures[0].key_id = signed.key_id
    reported.job_reported.job.signatures[0].signature = signed.signature
    assert envelope.key_id == signed.key_id
    world.database.run_sync(lambda session: forget(session, job.job_id))

    node = await attached(sessions, NodeStore())
    run = run_at(job.job_id, "FI")
    await node.send(wire.NodeFrame(heartbeat=wire.Heartbeat(epoch=node.epoch)))
    await node.receive("heartbeat_reply")
    # What was told before the backup is of a run that is not known yet, and passed over.
    for body in (report(run, "RUNNING", execution=1), reported, told, report(run, "RELEASED", execution=1)):
        seq = node.store.events.append(body)
        await node.send(wire.NodeFrame(event=node.store.events.event(seq, node.epoch)))
    upto = 0
    while upto < 4:
        frame = await node.down.get()
        upto = frame.event_ack.upto_seq if frame.HasField("event_ack") else upto
    back = await world.job(job.job_id)
    assert back.state is JobState.PENDING
    found = {one.node: one for one in back.runs}
    assert found["FI"].state is RunState.RELEASED
    assert found["FI"].statement
    assert found["ES"].state is RunState.OFFERED
    offered = world.database.run_sync(lambda session: session.scalars(select(CommandRow.node)).all())
    assert sorted(offered) == ["ES", "FI", "IT"]
    await node.hang_up()


async def test_a_release_whose_statement_came_while_its_job_was_forgotten_is_waited_for_and_nobody_is_set_apart(
    world: JobWorld, sessions: Sessions
) -> None:
    # The job was taken back, from another node or by its researcher, between the two events of FI's release.
    world.database.run_sync(lambda session: session.execute(update(FederationRow).values(generation=2)))
    job = await world.submit()
    run, content = run_at(job.job_id, "FI"), released(ac=41)
    node = await attached(sessions, NodeStore())
    await node.take_command()
    assert await node.tell(report(run, "RELEASED", execution=1)) == 1
    assert state_of(world)[0] is NodeState.ACTIVE
    told = release(await world.statement("FI", job, content), content)
    assert await node.tell(told, report(run, "RELEASED", execution=1)) == 3
    (found,) = (one for one in (await world.job(job.job_id)).runs if one.node == "FI")
    assert (found.state, bool(found.statement)) == (RunState.RELEASED, True)
    await node.hang_up()


@pytest.mark.parametrize("why", ["altered", "over", "another node's"])
async def test_evil_a_job_that_does_not_hold_is_not_taken_back_and_holds_up_nothing(
    world: JobWorld, sessions: Sessions, why: str
) -> None:
    nodes = [{"node": "ES", "dataset": "ES-aisnp", "snapshot": "sha256:" + "0" * 64}]
    signed = world.signed(datasets=nodes, quorum=1) if why == "another node's" else world.signed()
    world.database.run_sync(lambda session: session.execute(update(FederationRow).values(generation=2)))
    node = await attached(sessions, NodeStore())
    if why == "over":
        world.clock.advance(timedelta(hours=2))
    body = wire.EventBody(job_reported=wire.JobReported())
    message = body.job_reported.job
    message.payload_type, message.payload = signed.payload_type, signed.payload
    message.signatures.add(
        key_id=signed.key_id, signature=signed.signature[::-1] if why == "altered" else signed.signature
    )
    assert await node.tell(body) == 1
    assert world.database.run_sync(lambda session: session.scalars(select(JobRow.job_id)).all()) == []
    await node.hang_up()


async def test_a_store_that_was_never_restored_takes_no_job_from_a_node(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions, NodeStore())
    node.store.events.append(wire.EventBody(job_reported=wire.JobReported()))
    await node.send(wire.NodeFrame(event=node.store.events.event(1, node.epoch)))
    await node.receive("event_ack")
    await node.receive("fenced")
    assert await node.ended() is Reason.PROTOCOL_VIOLATION


def test_no_epoch_is_given_again_by_a_store_that_was_restored() -> None:
    assert next_epoch(0, 1) == 1
    assert next_epoch(7, 1) == 8
    assert next_epoch(3, 2) > next_epoch(1_000_000, 1)
    assert next_epoch(next_epoch(3, 2), 2) == next_epoch(3, 2) + 1


async def test_only_a_quarantined_node_is_reconciled(world: JobWorld) -> None:
    with pytest.raises(HansaError) as caught:
        reconciled(world)
    assert caught.value.reason is Reason.NODE_STATE_CONFLICT
