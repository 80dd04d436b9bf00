"""A node's session: attach, epochs, the two outboxes, and what ends it. Without gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import cast

import pytest

from coordinator.api.frames import node_frame
from coordinator.domain.frames import Event, NodeFrame
from coordinator.domain.membership import NodeState
from coordinator.services.nodes import Act, suspend_node
from coordinator.services.reports import Batch, apply_batch
from coordinator.services.sessions import Patience, Sessions
from coordinator.store.catalogue import DatasetRepository
from coordinator.store.job_models import CommandRow, EventRow
from coordinator.store.nodes import Node, NodeRepository
from coordinator.store.paging import Page
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.limits import COMMAND_WINDOW
from hansa.contract.states import RunState
from hansa.v1 import node_service_pb2 as wire
from hansa.v1 import types_pb2
from tests.support.job_world import START, JobWorld, open_world, snapshot
from tests.support.scripted_node import NodeStore, PlainNode, inventory, report, run_at

NONCE = b"n" * 32


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[JobWorld]:
    with open_world(f"sqlite:///{tmp_path}/c.db") as made:
        yield made
        await made.desk.settled()


@pytest.fixture
async def sessions(world: JobWorld) -> AsyncIterator[Sessions]:
    made = Sessions(world.desk, lambda: NONCE, Patience(farewell=timedelta(seconds=5)))
    yield made
    await made.close()


def node_row(world: JobWorld, node: str = "FI") -> Node:
    return world.database.run_sync(lambda s: NodeRepository(s).get(node))


async def attached(sessions: Sessions, store: NodeStore | None = None, node: str = "FI") -> PlainNode:
    made = PlainNode(sessions, node, store or NodeStore())
    await made.attach()
    await made.heartbeat()
    return made


async def test_a_node_that_proves_its_heads_is_connected_until_its_stream_ends(
    world: JobWorld, sessions: Sessions
) -> None:
    node = PlainNode(sessions, "FI", NodeStore())
    welcome = await node.attach()
    assert (welcome.epoch, welcome.nonce, welcome.event_cursor.seq, welcome.command_head.seq) == (1, NONCE, 0, 0)
    # Told before any command can come.
    assert welcome.wall.ToDatetime(UTC) == START
    assert (await node.heartbeat()).echo_monotonic_ms == 7
    assert node_row(world).connected

    world.clock.advance(timedelta(minutes=1))
    await node.hang_up()
    row = node_row(world)
    assert (row.connected, row.since) == (False, START + timedelta(minutes=1))


async def test_what_a_node_says_of_itself_holds_as_long_as_its_session(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    assert sessions.conditions() == {}
    draining = types_pb2.Node.DRAINING
    unknown = cast("types_pb2.Node.Condition.ValueType", 77)
    for conditions, seen in (([draining, unknown, draining], {"FI": ("DRAINING",)}), ([], {})):
        beat = wire.Heartbeat(epoch=node.epoch, monotonic_ms=8, conditions=conditions)
        await node.send(wire.NodeFrame(heartbeat=beat))
        await node.receive("heartbeat_reply")
        assert sessions.conditions() == seen
    await node.send(wire.NodeFrame(heartbeat=wire.Heartbeat(epoch=node.epoch, conditions=[draining])))
    await node.receive("heartbeat_reply")
    await node.hang_up()
    assert sessions.conditions() == {}


@pytest.mark.parametrize("wrong", ["nonce", "epoch", "hello", "protocol"])
async def test_a_session_that_does_not_attach_rightly_never_streams(
    world: JobWorld, sessions: Sessions, wrong: str
) -> None:
    node = PlainNode(sessions, "FI", NodeStore())
    if wrong in {"hello", "protocol"}:
        heartbeat = wire.NodeFrame(heartbeat=wire.Heartbeat(epoch=1))
        await node.send(node.store.hello(protocol=2) if wrong == "protocol" else heartbeat)
    else:
        await node.send(node.store.hello())
        welcome = (await node.receive("welcome")).welcome
        if wrong == "epoch":
            welcome.epoch += 1
        await node.send(node.store.proof(welcome, nonce=b"x" * 32 if wrong == "nonce" else None))
    await node.receive("fenced")
    expected = Reason.VERSION_UNSUPPORTED if wrong == "protocol" else Reason.PROTOCOL_VIOLATION
    assert await node.ended() is expected
    assert not node_row(world).connected


async def test_an_offer_goes_out_when_it_is_committed_and_only_once(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    job = await world.submit()
    command = await node.take_command()
    assert command.offer.run_id == run_at(job.job_id, "FI")
    await node.heartbeat()

    again = await attached(sessions, node.store)
    assert len(again.store.commands) == 1
    acked = world.database.run_sync(lambda s: s.get(CommandRow, ("FI", 1)).acked)  # type: ignore[union-attr]
    assert acked


async def test_what_was_not_acknowledged_comes_again_in_the_next_session(world: JobWorld, sessions: Sessions) -> None:
    await world.submit()
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    first = (await node.receive("command")).command
    await node.hang_up()  # neither applied nor acknowledged

    node = PlainNode(sessions, "FI", node.store)
    await node.attach()
    again = (await node.receive("command")).command
    assert (again.seq, again.body) == (first.seq, first.body)


async def test_commands_in_flight_are_limited(world: JobWorld, sessions: Sessions) -> None:
    for _ in range(COMMAND_WINDOW + 3):
        await world.submit()
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    for _ in range(COMMAND_WINDOW):
        node.store.apply((await node.receive("command")).command)
    await node.heartbeat()  # and not one command more
    await node.send(wire.NodeFrame(command_ack=wire.CommandAck(epoch=node.epoch, upto_seq=COMMAND_WINDOW)))
    for _ in range(3):
        node.store.apply((await node.receive("command")).command)
    assert node.store.command_cursor.seq == COMMAND_WINDOW + 3


async def test_events_are_applied_once_however_often_they_come(world: JobWorld, sessions: Sessions) -> None:
    job = await world.submit()
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    await node.take_command()
    run = run_at(job.job_id, "FI")
    assert await node.tell(report(run, "ACCEPTED"), report(run, "QUEUED")) == 2
    assert await node.resend([1, 2]) == 2
    assert await node.resend([1]) == 2
    stored = await world.job(job.job_id)
    assert stored.runs[0].state is RunState.QUEUED
    assert world.database.run_sync(lambda s: [row.seq for row in s.query(EventRow).order_by(EventRow.seq)]) == [1, 2]


async def test_an_event_after_a_gap_is_refused_and_changes_nothing(world: JobWorld, sessions: Sessions) -> None:
    job = await world.submit()
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    await node.take_command()
    run = run_at(job.job_id, "FI")
    node.store.events.append(report(run, "ACCEPTED"))
    node.store.events.append(report(run, "QUEUED"))
    await node.send(wire.NodeFrame(event=node.store.events.event(2, node.epoch)))
    assert (await node.receive("event_ack")).event_ack.upto_seq == 0
    assert (await node.receive("fenced")).fenced.reason == Reason.PROTOCOL_VIOLATION
    await node.ended()
    assert (await world.job(job.job_id)).runs[0].state is RunState.OFFERED

    # The node comes back and sends from the cursor it is told.
    node = PlainNode(sessions, "FI", node.store)
    assert (await node.attach()).event_cursor.seq == 0
    assert await node.resend([1, 2]) == 2


async def test_a_fork_in_the_stream_sets_the_node_apart(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    await node.tell(inventory())
    node.store.events.append(inventory())
    event = node.store.events.event(2, node.epoch)
    event.prev_hash = b"f" * 32
    await node.send(wire.NodeFrame(event=event))
    await node.receive("event_ack")
    assert (await node.receive("fenced")).fenced.reason == Reason.NODE_QUARANTINED
    await node.ended()
    assert node_row(world).state is NodeState.QUARANTINED

    refused = PlainNode(sessions, "FI", node.store)
    await refused.send(node.store.hello())
    await refused.receive("fenced")
    assert await refused.ended() is Reason.NODE_QUARANTINED


async def test_a_restored_backup_sets_the_node_apart(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    await node.tell(inventory(), inventory())
    await node.hang_up()
    backup = NodeStore()
    backup.events.append(inventory())  # what the node had before the second event
    again = PlainNode(sessions, "FI", backup)
    await again.attach()
    await again.receive("fenced")
    assert await again.ended() is Reason.NODE_QUARANTINED
    assert "events" in node_row(world).reason


async def test_a_node_ahead_of_the_coordinators_commands_is_refused_and_not_blamed(
    world: JobWorld, sessions: Sessions
) -> None:
    await world.submit()
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    await node.take_command()
    await node.hang_up()
    node.store.command_cursor = node.store.command_cursor.after(b"of a later coordinator")
    again = PlainNode(sessions, "FI", node.store)
    await again.attach()
    await again.receive("fenced")
    assert await again.ended() is Reason.COORDINATOR_BEHIND
    assert node_row(world).state is NodeState.ACTIVE, "it is the coordinator that has forgotten"


async def test_another_store_is_welcome_only_while_nothing_was_applied(world: JobWorld, sessions: Sessions) -> None:
    await (await attached(sessions, NodeStore(uuid="first"))).hang_up()
    second = await attached(sessions, NodeStore(uuid="second"))
    await second.tell(inventory())
    await second.hang_up()

    third = PlainNode(sessions, "FI", NodeStore(uuid="third"))
    await third.send(third.store.hello())
    await third.receive("fenced")
    assert await third.ended() is Reason.NODE_QUARANTINED


async def test_a_newer_session_fences_the_older_one(world: JobWorld, sessions: Sessions) -> None:
    older = await attached(sessions)
    newer = await attached(sessions, older.store)
    fenced = (await older.receive("fenced")).fenced
    assert (fenced.by_epoch, fenced.reason) == (2, Reason.EPOCH_FENCED)
    assert await older.ended() is Reason.EPOCH_FENCED
    assert node_row(world).connected, "the end of the older session is not the node's"
    await newer.heartbeat()


async def test_a_frame_of_an_old_epoch_ends_the_session(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    node.store.events.append(inventory())
    await node.send(wire.NodeFrame(event=node.store.events.event(1, node.epoch - 1)))
    await node.receive("fenced")
    assert await node.ended() is Reason.PROTOCOL_VIOLATION


async def test_a_batch_of_a_session_that_lost_its_standing_changes_nothing(world: JobWorld, sessions: Sessions) -> None:
    job = await world.submit()
    older = await attached(sessions)
    newer = await attached(sessions, older.store)
    newer.store.events.append(report(run_at(job.job_id, "FI"), "DECLINED"))
    late = node_frame(wire.NodeFrame(event=newer.store.events.event(1, older.epoch)))
    assert isinstance(late, Event)

    async def refusal(epoch: int) -> Reason:
        batch = Batch(node="FI", epoch=epoch, events=[late], acked=1)
        with pytest.raises(HansaError) as caught:
            await world.desk.commit(lambda s: apply_batch(s, batch, world.desk.turn()))
        return caught.value.reason

    assert await refusal(older.epoch) is Reason.EPOCH_FENCED
    world.database.run_sync(lambda s: suspend_node(s, NodeId("FI"), "", Act("olga", START)))
    assert await refusal(newer.epoch) is Reason.NODE_SUSPENDED
    assert (await world.job(job.job_id)).runs[0].state is RunState.OFFERED


async def test_an_acknowledgement_of_what_was_never_sent_ends_the_session(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    await node.send(wire.NodeFrame(command_ack=wire.CommandAck(epoch=node.epoch, upto_seq=9)))
    await node.receive("fenced")
    assert await node.ended() is Reason.PROTOCOL_VIOLATION


async def test_a_node_speaks_for_its_own_runs_only(world: JobWorld, sessions: Sessions) -> None:
    job = await world.submit()
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    await node.take_command()
    node.store.events.append(report(run_at(job.job_id, "ES"), "DECLINED"))
    await node.send(wire.NodeFrame(event=node.store.events.event(1, node.epoch)))
    await node.receive("event_ack")
    await node.receive("fenced")
    assert await node.ended() is Reason.NODE_MISMATCH
    assert [run.state for run in (await world.job(job.job_id)).runs] == [RunState.OFFERED] * 3


async def test_only_enumerated_reasons_and_plain_incidents_are_taken_over(world: JobWorld, sessions: Sessions) -> None:
    job = await world.submit()
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    await node.take_command()
    run = run_at(job.job_id, "FI")
    await node.tell(report(run, "FAILED", reason="sample NA12878 broke it", incident="/home/x"))
    stored = (await world.job(job.job_id)).runs[0]
    assert (stored.state, stored.reason, stored.incident) == (RunState.FAILED, "", "")

    job = await world.submit()
    await node.take_command()
    await node.tell(report(run_at(job.job_id, "FI"), "FAILED", reason="TIME_LIMIT", incident="FI-0042"))
    stored = (await world.job(job.job_id)).runs[0]
    assert (stored.reason, stored.incident) == ("TIME_LIMIT", "FI-0042")


async def test_an_inventory_replaces_the_one_before(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    await node.tell(inventory(("new", "FI", "GRCh38", snapshot("new"))))
    listed = world.database.run_sync(lambda s: DatasetRepository(s).page(Page(50))).items
    assert [d.dataset_id for d in listed if d.node == "FI"] == ["new"]


@pytest.mark.parametrize(
    "bad",
    [
        ("a", "ES", "GRCh37", snapshot("a")),
        ("../a", "FI", "GRCh37", snapshot("a")),
        ("a", "FI", "hg19", snapshot("a")),
        ("a", "FI", "GRCh37", "sha256:x"),
    ],
)
async def test_an_inventory_with_a_bad_entry_is_refused_whole(
    world: JobWorld, sessions: Sessions, bad: tuple[str, str, str, str]
) -> None:
    node = await attached(sessions)
    node.store.events.append(inventory(("good", "FI", "GRCh37", snapshot("a")), bad))
    await node.send(wire.NodeFrame(event=node.store.events.event(1, node.epoch)))
    await node.receive("event_ack")
    await node.receive("fenced")
    await node.ended()
    listed = world.database.run_sync(lambda s: DatasetRepository(s).page(Page(50))).items
    assert [d.dataset_id for d in listed if d.node == "FI"] == ["FI-aisnp"]


async def test_a_cut_ends_the_session_with_its_reason(world: JobWorld, sessions: Sessions) -> None:
    node = await attached(sessions)
    world.database.run_sync(lambda s: suspend_node(s, NodeId("FI"), "", Act("olga", START)))
    sessions.cut("FI", Reason.NODE_SUSPENDED)
    assert (await node.receive("fenced")).fenced.reason == Reason.NODE_SUSPENDED
    assert await node.ended() is Reason.NODE_SUSPENDED
    assert not node_row(world).connected


async def test_a_session_ends_with_its_certificate(world: JobWorld, sessions: Sessions) -> None:
    node = PlainNode(sessions, "FI", NodeStore(), not_after=world.clock() - timedelta(seconds=1))
    assert (await node.receive("fenced")).fenced.reason == Reason.CERTIFICATE_REFUSED
    await node.ended()


async def test_a_silent_node_is_disconnected(world: JobWorld) -> None:
    sessions = Sessions(world.desk, lambda: NONCE, Patience(silence=timedelta(milliseconds=50)))
    node = PlainNode(sessions, "FI", NodeStore())
    await node.attach()
    assert await node.ended() is None
    assert not node_row(world).connected


async def test_a_peer_that_never_says_hello_is_let_go(world: JobWorld) -> None:
    sessions = Sessions(world.desk, lambda: NONCE, Patience(attach=timedelta(milliseconds=50)))
    assert await PlainNode(sessions, "FI", NodeStore()).ended() is None


async def test_a_peer_that_does_not_read_cannot_keep_its_stream(world: JobWorld) -> None:
    sessions = Sessions(world.desk, lambda: NONCE, Patience(farewell=timedelta(milliseconds=50)))
    never, reading = asyncio.Event(), asyncio.Event()

    async def frames() -> AsyncIterator[NodeFrame]:
        yield node_frame(NodeStore().hello())
        await never.wait()

    async def read_one_and_stop() -> None:
        async for _ in session.outgoing():
            reading.set()
            await never.wait()

    session = sessions.open(NodeId("FI"), frames(), not_after=None)
    consumer = asyncio.create_task(read_one_and_stop())
    await reading.wait()
    sessions.cut("FI", Reason.NODE_REVOKED)
    async with asyncio.timeout(20):
        await asyncio.wait([consumer])
        await session.ended()
    assert consumer.cancelled()


async def test_a_coordinator_that_starts_knows_of_no_connection(world: JobWorld, sessions: Sessions) -> None:
    await attached(sessions)
    fresh = Sessions(world.desk, lambda: NONCE)
    await fresh.begin()
    assert not node_row(world).connected
