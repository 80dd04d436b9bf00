"""A node whose coordinator was restored from a backup: nothing is lost, nothing is released twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from hansa.contract.envelope import from_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head
from hansa.v1 import node_service_pb2
from node_agent.store.models import LoggedReleaseRow, RunRow
from node_agent.store.outbox import command_cursor, coordinator_seen, event_head, hash_at
from tests.support.agent import Bench, job, make_bench, offer
from tests.support.restored_bench import finished, raise_generation, released, sent
from tests.support.scripted_coordinator import Coordinator, kinds, reconcile, told


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


async def test_a_restored_coordinator_is_told_everything_again_with_the_same_statement(bench: Bench) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    run = await released(bench)
    (first,) = await sent(bench)
    statement = (await bench.summary(run.run_id)).statement
    await coordinator.received_all(bench)
    before = (await bench.database.run(event_head)).seq

    await bench.database.run(lambda session: session.execute(update(LoggedReleaseRow).values(told=True)))

    coordinator.generation, coordinator.events = 2, Head()
    await coordinator.attach(bench)
    again = await told(bench, before)
    assert await bench.database.run(lambda session: session.scalars(select(LoggedReleaseRow.told)).all()) == [False]
    assert kinds(again) == ["inventory_reported", "job_reported", "summary_released", "run_reported"]
    envelope = again[2].summary_released.statement
    assert statement is not None
    assert envelope.payload == from_json(statement).payload
    assert again[1].job_reported.job.payload == (
        await bench.database.run(lambda session: session.get_one(RunRow, run.run_id).payload)
    )
    (second,) = await sent(bench)
    assert second == first, "the bytes leave again as they left"
    await coordinator.attach(bench)
    assert (await bench.database.run(event_head)).seq == before + 4, "once for each generation"


async def test_a_restored_coordinators_commands_are_taken_from_what_it_knows_to_be_applied(bench: Bench) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    for _ in range(3):
        await coordinator.send(bench, node_service_pb2.CommandBody(trust_update=node_service_pb2.TrustUpdate()))
    known = Coordinator(generation=2, commands=Head(2, coordinator.commands.hash), base=Head(1, b"1" * 32))
    proof = await known.attach(bench)
    assert (proof.command_cursor.seq, proof.command_cursor.hash) == (1, b"1" * 32)


async def test_what_a_coordinator_that_is_not_behind_says_is_taken_on_from_where_it_stood(bench: Bench) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    await coordinator.send(bench, node_service_pb2.CommandBody(trust_update=node_service_pb2.TrustUpdate()))
    ahead = Coordinator(generation=2, commands=coordinator.commands, base=coordinator.commands)
    proof = await ahead.attach(bench)
    assert proof.command_cursor.seq == 1


@pytest.mark.parametrize("behind", ["commands", "events", "generation"])
async def test_a_coordinator_that_was_put_back_by_hand_is_not_obeyed(bench: Bench, behind: str) -> None:
    coordinator = Coordinator(generation=2)
    await coordinator.attach(bench)
    await coordinator.send(bench, node_service_pb2.CommandBody(trust_update=node_service_pb2.TrustUpdate()))
    await released(bench)
    await coordinator.received_all(bench)
    await coordinator.attach(bench)
    cursor = await bench.database.run(command_cursor)

    if behind == "commands":
        coordinator.commands = coordinator.base = Head()
    elif behind == "events":
        coordinator.events = Head()
    else:
        coordinator.generation = 1
    with pytest.raises(HansaError) as caught:
        await coordinator.attach(bench)
    assert caught.value.reason is Reason.COORDINATOR_BEHIND
    assert await bench.database.run(command_cursor) == cursor


async def test_evil_a_coordinator_that_raises_its_generation_again_and_again_gets_one_release(bench: Bench) -> None:
    coordinator = Coordinator()
    await coordinator.attach(bench)
    spec = job()
    run = await finished(bench, await bench.running(spec))
    statements = {(await bench.summary(run.run_id)).statement}
    for generation in range(2, 6):
        coordinator = Coordinator(generation=generation, base=Head(), commands=Head())
        await coordinator.attach(bench)
        for attempt in (1, generation):
            await bench.offer(offer(spec, attempt=attempt))
        await bench.step()
        assert (await bench.run(run.run_id)).state == "RELEASED"
        statements.add((await bench.summary(run.run_id)).statement)
    told_of = {
        event.summary_released.statement.payload for event in await told(bench) if event.HasField("summary_released")
    }
    assert len(statements) == len(told_of) == 1


async def test_a_coordinator_restored_to_before_the_first_event_that_is_kept_is_told_everything_behind_its_cursor(
    bench: Bench,
) -> None:
    # This node was itself restored and reconciled after the coordinator's backup: its events begin behind 80.
    await bench.database.run(raise_generation)
    later = Coordinator(events=Head(80, b"l" * 32))
    await later.attach(bench)
    await later.send(bench, reconcile())
    run = await released(bench)
    statement = (await bench.summary(run.run_id)).statement
    earlier = Coordinator(generation=2, events=Head(50, b"e" * 32))
    proof = await earlier.attach(bench)
    assert proof.hash_at_event_cursor == b"e" * 32
    events = await told(bench, 50)
    assert kinds(events) == ["inventory_reported", "job_reported", "summary_released", "run_reported"]
    assert statement is not None
    assert events[2].summary_released.statement.payload == from_json(statement).payload
    # A session that breaks changes nothing; the next one finds the same.
    assert await earlier.attach(bench) == proof


async def test_a_node_with_fewer_events_than_a_restored_coordinator_shows_what_it_has(bench: Bench) -> None:
    await Coordinator(generation=1).attach(bench)
    await released(bench)
    head = await bench.database.run(event_head)
    beyond = Head(head.seq + 100, b"x" * 32)
    proof = await Coordinator(generation=2, events=beyond).attach(bench)
    assert (proof.event_head.seq < beyond.seq, proof.hash_at_event_cursor) == (True, b"")


async def test_a_node_whose_events_differ_from_a_restored_coordinators_shows_it(bench: Bench) -> None:
    await Coordinator(generation=1).attach(bench)
    await released(bench)
    own = await bench.database.run(lambda session: hash_at(session, 1))
    proof = await Coordinator(generation=2, events=Head(1, b"x" * 32)).attach(bench)
    assert (own, proof.hash_at_event_cursor) == (own, own)


async def test_a_repeated_offer_is_answered_where_the_coordinator_was_restored(bench: Bench) -> None:
    spec = job()
    run = await finished(bench, await bench.running(spec))
    await Coordinator(generation=1).attach(bench)
    await Coordinator(generation=2).attach(bench)
    before = (await bench.database.run(event_head)).seq
    await bench.offer(offer(spec))
    assert kinds(await told(bench, before)) == ["summary_released", "run_reported"]
    assert (await bench.run(run.run_id)).state == "RELEASED"


async def test_evil_no_breach_can_use_the_generations_up(bench: Bench) -> None:
    await Coordinator(generation=1).attach(bench)
    with pytest.raises(HansaError) as caught:
        await Coordinator(generation=1 << 40).attach(bench)
    assert caught.value.reason is Reason.PROTOCOL_VIOLATION
    await Coordinator(generation=1).attach(bench)


async def test_a_cursor_beyond_our_own_events_is_not_taken_for_an_acknowledgement(bench: Bench) -> None:
    await Coordinator(events=Head(1 << 40, b"x" * 32)).attach(bench)
    assert (await bench.database.run(coordinator_seen)).acked == (await bench.database.run(event_head)).seq
    await Coordinator().attach(bench)
