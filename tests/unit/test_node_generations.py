"""A node whose coordinator, or whose own store, was restored from a backup: nothing is lost, nothing is released twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hansa.contract.envelope import from_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head
from hansa.contract.states import IllegalTransitionError, RunEvent
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.airlock.released import ReleasedSummary
from node_agent.executions import Finish, Outcome
from node_agent.link.attaching import answer_welcome
from node_agent.link.encoding import head_message
from node_agent.reporting import advance
from node_agent.spool.uploader import Uploader
from node_agent.store.models import EventRow, LoggedReleaseRow, RunRow
from node_agent.store.outbox import append_event, command_cursor, event_head, hash_at
from tests.support.agent import OPEN_POLICY, Bench, collected, job, make_bench, offer
from tests.support.restored_bench import back_up, raise_generation, restore

MANUAL = {**OPEN_POLICY, "release": {"mode": "manual"}}


@dataclass
class Coordinator:
    """What a coordinator says of itself at an attach, and how far it has come."""

    generation: int = 1
    events: Head = field(default_factory=Head)
    commands: Head = field(default_factory=Head)
    base: Head = field(default_factory=Head)

    def welcome(self) -> node_service_pb2.Welcome:
        return node_service_pb2.Welcome(
            epoch=1,
            nonce=b"n",
            store_uuid="coordinator",
            generation=self.generation,
            event_cursor=head_message(self.events),
            command_head=head_message(self.commands),
            command_base=head_message(self.base),
        )

    async def attach(self, bench: Bench) -> node_service_pb2.HeadProof:
        return await bench.database.run(lambda s: answer_welcome(s, self.welcome(), bench.reporter, bench.now))

    async def received_all(self, bench: Bench) -> None:
        self.events = await bench.database.run(event_head)

    async def send(self, bench: Bench, body: node_service_pb2.CommandBody) -> None:
        data = body.SerializeToString(deterministic=True)
        command = node_service_pb2.Command(epoch=1, seq=self.commands.seq + 1, prev_hash=self.commands.hash, body=data)
        await bench.database.run(lambda session: bench.commands.apply(session, command, bench.now))
        self.commands = self.base = self.commands.after(data)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


async def finished(bench: Bench, run: RunRow, execution: int | None = None) -> RunRow:
    number = run.execution if execution is None else execution
    await bench.executions.finish(
        Finish(run_id=run.run_id, execution=number, outcome=Outcome.SUMMARY, summary=collected())
    )
    return await bench.run(run.run_id)


async def released(bench: Bench) -> RunRow:
    return await finished(bench, await bench.running(job()))


async def told(bench: Bench, after: int = 0) -> list[node_service_pb2.EventBody]:
    query = select(EventRow.body).where(EventRow.seq > after).order_by(EventRow.seq)
    bodies = await bench.database.run(lambda session: session.scalars(query).all())
    return [node_service_pb2.EventBody.FromString(body) for body in bodies]


def kinds(events: list[node_service_pb2.EventBody]) -> list[str | None]:
    return [event.WhichOneof("body") for event in events]


async def sent(bench: Bench) -> list[ReleasedSummary]:
    """Return what the spool sends now."""
    found: list[ReleasedSummary] = []

    async def send(summary: ReleasedSummary) -> None:
        found.append(summary)

    uploader = Uploader(database=bench.database, bells=bench.bells, clock=lambda: bench.now)
    task = asyncio.create_task(uploader.run(send))
    bench.bells.spool.set()
    for _ in range(200):
        await asyncio.sleep(0.01)
        if found:
            break
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return found


# --- the coordinator's store was restored ------------------------------------------------


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


# --- the node's own store was restored ---------------------------------------------------


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


def recorded(run: RunRow, state: str, statement: bytes | None = None, **fields: int) -> node_service_pb2.RecordedRun:
    """Return a run as a coordinator has recorded it."""
    made = node_service_pb2.RecordedRun(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=fields.get("execution", run.execution),
        state=types_pb2.Run.State.Value(state),
    )
    if statement is not None:
        signed = from_json(statement)
        signature = types_pb2.Signature(key_id=signed.key_id, signature=signed.signature)
        envelope = types_pb2.Envelope(payload_type=signed.payload_type, payload=signed.payload, signatures=[signature])
        made.statement.CopyFrom(envelope)
    return made


def reconcile(
    *runs: node_service_pb2.RecordedRun, more: bool = False, generation: int = 2
) -> node_service_pb2.CommandBody:
    told = node_service_pb2.Reconcile(runs=runs, more=more, generation=generation)
    return node_service_pb2.CommandBody(reconcile=told)


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
    await Coordinator().attach(bench)


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
