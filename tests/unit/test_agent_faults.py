"""The agent's core under faults and under a hostile coordinator, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import SUMMARY_BYTES
from hansa.contract.outbox import Head
from hansa.runtime.drain import DrainFile
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.airlock.gate import RELEASE
from node_agent.airlock.released import ReleasedSummary
from node_agent.audit.trail import AuditTrail
from node_agent.backups import Backups
from node_agent.config import StateFolder
from node_agent.datasets import Datasets
from node_agent.executions import Finish, Outcome
from node_agent.link.daemon import Pace
from node_agent.link.encoding import WireReporter
from node_agent.local_api.server import LocalApi
from node_agent.local_api.views import Views
from node_agent.policy.book import PolicyBook
from node_agent.policy.changes import PolicyChanges
from node_agent.retention import Retention
from node_agent.run_rules import BEAT_PATIENCE
from node_agent.spool.uploader import Uploader
from node_agent.staging.snapshot import PGEN, SNAPSHOT_FILE
from node_agent.store.models import RunRow, SummaryRow
from node_agent.store.outbox import append_event, command_cursor
from tests.support.agent import OPEN_POLICY, Bench, collected, job, make_bench, offer

PATIENCE = 20.0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def manual(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path, {**OPEN_POLICY, "release": {"mode": "manual"}})
    yield made
    made.database.close()


def summary(run: RunRow, text: str | None = None) -> Finish:
    return Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=text or collected())


async def released(bench: Bench) -> RunRow:
    run = await bench.running(job())
    await bench.executions.finish(summary(run))
    return await bench.run(run.run_id)


async def applied(bench: Bench, body: bytes) -> None:
    cursor = await bench.database.run(command_cursor)
    command = node_service_pb2.Command(epoch=1, seq=cursor.seq + 1, prev_hash=cursor.hash, body=body)
    await bench.database.run(lambda session: bench.commands.apply(session, command, bench.now))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - what is waited for is in a thread or a store
            await asyncio.sleep(0.01)


# --- what the coordinator sends -------------------------------------------------


@given(body=st.binary(max_size=200))
def test_whatever_stands_in_a_command_the_refusal_is_one_of_ours(tmp_path_factory: Any, body: bytes) -> None:
    async def check() -> None:
        bench = _bench_for_all(tmp_path_factory)
        with suppress(HansaError):
            await applied(bench, body)

    asyncio.run(check())


_shared: list[Bench] = []


def _bench_for_all(tmp_path_factory: Any) -> Bench:
    if not _shared:
        _shared.append(make_bench(tmp_path_factory.mktemp("commands")))
    return _shared[0]


@pytest.fixture(autouse=True, scope="module")
def _close_shared() -> Iterator[None]:
    yield
    for bench in _shared:
        bench.database.close()


async def test_a_command_that_cannot_be_read_is_refused_and_applies_nothing(bench: Bench) -> None:
    with pytest.raises(HansaError) as refused:
        await applied(bench, b"\xff\xff\xff")
    assert refused.value.reason is Reason.PROTOCOL_VIOLATION
    assert await bench.database.run(command_cursor) == Head()


@pytest.mark.parametrize("name", ["../datasets", "/etc", "", ".", "A" * 32, "a" * 33])
async def test_an_offer_whose_run_is_no_name_is_refused_since_it_would_name_a_folder(bench: Bench, name: str) -> None:
    wire = node_service_pb2.Offer(run_id=name, job_id="x", round=1, attempt=1, job=types_pb2.Envelope(payload=b"{}"))
    with pytest.raises(HansaError) as refused:
        await applied(bench, node_service_pb2.CommandBody(offer=wire).SerializeToString())
    assert refused.value.reason is Reason.PROTOCOL_VIOLATION


async def test_no_run_of_whatever_name_makes_retention_delete_outside_of_the_runs(bench: Bench) -> None:
    run = await bench.offer(offer(job(submitter="eve")))

    def rename(session: Session) -> None:
        session.get_one(RunRow, run.run_id).run_id = "../datasets"

    await bench.database.run(rename)
    bench.now += timedelta(days=10_000)
    await Retention(
        database=bench.database, state=bench.state, policy=lambda: bench.policy, clock=lambda: bench.now
    ).purge()
    assert bench.snapshot.exists()


async def test_a_deadline_at_the_end_of_time_is_declined(bench: Bench) -> None:
    spec = job()
    signed = offer(spec)
    end = spec.not_after.isoformat().replace("+00:00", "Z").encode()
    payload = signed.payload.replace(end, b"9999-12-31T23:59:59-14:00")
    assert payload != signed.payload
    run = await bench.offer(type(signed)(**{**{n: getattr(signed, n) for n in signed.__slots__}, "payload": payload}))
    assert (run.state, run.reason) == ("DECLINED", "JOB_INVALID")


async def test_what_was_released_is_not_run_again_for_another_attempt(bench: Bench) -> None:
    spec = job()
    run = await bench.running(spec)
    await bench.executions.finish(summary(run))
    again = await bench.offer(offer(spec, attempt=2))
    assert (again.state, again.attempt) == ("RELEASED", 1)


async def test_another_attempt_does_not_take_a_live_run_away(bench: Bench) -> None:
    spec = job()
    run = await bench.running(spec)
    again = await bench.offer(offer(spec, attempt=2))
    assert (again.state, again.attempt) == ("RUNNING", 1)
    assert not await bench.executions.beat(run.run_id, run.execution)


async def test_an_expired_wait_for_release_may_be_tried_again_to_the_end(manual: Bench) -> None:
    spec = job(deadline=timedelta(minutes=5))
    run = await manual.running(spec)
    await manual.executions.finish(summary(run))
    cancel = node_service_pb2.CommandBody(cancel=node_service_pb2.Cancel(run_id=run.run_id, attempt=1))
    await applied(manual, cancel.SerializeToString())
    assert (await manual.run(run.run_id)).state == "CANCELLED"
    await manual.offer(offer(spec, attempt=2))
    await manual.step()
    await manual.executions.claim(run.run_id, "worker-2")
    await manual.executions.finish(summary(await manual.run(run.run_id)))
    assert (await manual.run(run.run_id)).state == "AWAITING_RELEASE"
    await manual.decide(run.run_id, RELEASE, why="fine")
    row = await manual.database.run(lambda session: session.get_one(SummaryRow, run.run_id))
    assert (row.attempt, row.execution) == (2, 2)


async def test_past_its_deadline_a_waiting_summary_is_not_released_any_more(manual: Bench) -> None:
    run = await manual.running(job(deadline=timedelta(minutes=5)))
    await manual.executions.finish(summary(run))
    manual.now += timedelta(minutes=6)
    await manual.step()
    assert (await manual.run(run.run_id)).state == "EXPIRED"
    with pytest.raises(HansaError) as refused:
        await manual.decide(run.run_id, RELEASE, why="too late")
    assert refused.value.reason is Reason.RELEASE_CONFLICT


async def test_a_result_that_comes_after_the_deadline_is_refused(bench: Bench) -> None:
    run = await bench.running(job(deadline=timedelta(seconds=5)))
    bench.now += timedelta(seconds=6)
    await bench.step()
    with pytest.raises(HansaError) as refused:
        await bench.executions.finish(summary(run))
    assert refused.value.reason is Reason.EXECUTION_SUPERSEDED
    assert await bench.database.run(lambda session: session.get(SummaryRow, run.run_id)) is None


async def test_a_draining_node_declines_new_offers(bench: Bench) -> None:
    bench.wishes.draining = True
    run = await bench.offer(offer(job()))
    assert (run.state, run.reason) == ("DECLINED", "NODE_DRAINING")


async def test_a_node_that_cannot_tell_the_time_declines_new_offers_and_goes_on_with_what_it_has(bench: Bench) -> None:
    before = await bench.running(job())
    bench.clock_wrong = True
    run = await bench.offer(offer(job()))
    assert (run.state, run.reason) == ("DECLINED", "CLOCK_WRONG")
    await bench.executions.finish(summary(before))
    assert (await bench.run(before.run_id)).state == "RELEASED"


async def test_while_the_operator_drains_offers_are_accepted_and_wait_and_what_runs_goes_on(bench: Bench) -> None:
    runs = await bench.running(job())
    wish = DrainFile(bench.state.path)
    wish.set(bench.now)
    waiting = await bench.offer(offer(job()))
    await bench.step()
    assert (await bench.run(waiting.run_id)).state == "QUEUED"
    await bench.executions.finish(summary(runs))
    await bench.step()
    assert (await bench.run(runs.run_id)).state == "RELEASED"
    assert (await bench.run(waiting.run_id)).state == "QUEUED"
    wish.clear()
    await bench.step()
    assert (await bench.run(waiting.run_id)).state == "STAGING"


# --- the pace of sessions ---------------------------------------------------------


def test_sessions_that_end_at_once_are_tried_ever_more_seldom() -> None:
    pace = Pace(lambda: 0.5)
    waits = [pace.wait(30.0, lasted_seconds=0.1) for _ in range(12)]
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == 22.5


def test_after_a_session_that_stood_the_first_try_is_soon() -> None:
    pace = Pace(lambda: 0.5)
    waits = [pace.wait(5.0, lasted_seconds=0.1) for _ in range(12)]
    assert pace.wait(5.0, lasted_seconds=60.0) == waits[0] < waits[-1]


# --- the spool ----------------------------------------------------------------------


def uploader(bench: Bench) -> Uploader:
    return Uploader(database=bench.database, bells=bench.bells, clock=lambda: bench.now)


async def test_a_summary_that_is_refused_holds_up_no_other_and_is_tried_again(bench: Bench) -> None:
    refused, taken = await released(bench), await released(bench)
    sent: list[str] = []

    async def send(one: ReleasedSummary) -> None:
        sent.append(one.run_id)
        if one.run_id == refused.run_id:
            raise HansaError(Reason.SUMMARY_CONFLICT)

    task = asyncio.create_task(uploader(bench).run(send))
    await until(lambda: taken.run_id in sent)
    assert not task.done()
    assert sorted(sent) == sorted([refused.run_id, taken.run_id])
    bench.now += timedelta(minutes=6)
    bench.bells.ring()
    await until(lambda: sent.count(refused.run_id) == 2)
    task.cancel()
    assert sent.count(taken.run_id) == 1


async def test_a_summary_of_a_run_that_a_restored_coordinator_has_yet_to_hear_of_goes_out_again_soon_then_ever_later(
    bench: Bench,
) -> None:
    await released(bench)
    sent: list[int] = []

    async def send(_one: ReleasedSummary) -> None:
        sent.append(len(sent))
        raise HansaError(Reason.RUN_UNKNOWN)

    task = asyncio.create_task(uploader(bench).run(send))
    await until(lambda: len(sent) == 1)
    for seconds in (2, 4, 8):
        before = len(sent)
        bench.now += timedelta(seconds=seconds)
        bench.bells.ring()
        await until(partial(_longer, sent, before))
    bench.now += timedelta(seconds=8)
    bench.bells.ring()
    await until(lambda: not bench.bells.spool.is_set())
    assert len(sent) == 4, "runs that it never takes back are not asked for again and again"
    task.cancel()


def _longer(found: list[int], than: int) -> bool:
    return len(found) > than


async def test_a_summary_for_which_there_is_no_room_is_sent_again_when_the_coordinator_asks_for_it(
    bench: Bench,
) -> None:
    run = await released(bench)
    sent: list[str] = []

    async def send(one: ReleasedSummary) -> None:
        sent.append(one.run_id)
        if len(sent) == 1:
            raise HansaError(Reason.OVERLOADED, retry_seconds=7)

    task = asyncio.create_task(uploader(bench).run(send))
    await until(lambda: len(sent) == 1)
    bench.now += timedelta(seconds=8)
    bench.bells.ring()
    await until(lambda: sent == [run.run_id] * 2)
    task.cancel()


async def test_a_damaged_summary_is_never_sent_and_holds_up_no_other(bench: Bench) -> None:
    damaged, sound = await released(bench), await released(bench)

    def damage(session: Session) -> None:
        row = session.get_one(SummaryRow, damaged.run_id)
        row.outgoing = (row.outgoing or b"") + b" "

    await bench.database.run(damage)
    sent: list[str] = []

    async def send(one: ReleasedSummary) -> None:
        sent.append(one.run_id)

    task = asyncio.create_task(uploader(bench).run(send))
    await until(lambda: bool(sent))
    task.cancel()
    assert sent == [sound.run_id]


# --- the store and the disk -----------------------------------------------------------


async def _fill(bench: Bench) -> None:
    for _ in range(100_000):
        await bench.database.run(lambda session: append_event(session, b"x", bench.now))


async def test_a_full_disk_stops_nothing_for_good_and_nothing_is_half_done(bench: Bench) -> None:
    run = await bench.offer(offer(job()))

    def pages(count: str) -> Callable[[Session], None]:
        return lambda session: session.connection().exec_driver_sql(f"PRAGMA max_page_count={count}").close()

    await bench.database.run(pages("1"))
    with pytest.raises(HansaError) as refused:
        await _fill(bench)
    assert refused.value.reason is Reason.STORE_FULL
    before = await bench.events()
    with structlog.testing.capture_logs() as logs:
        scheduler = asyncio.create_task(bench.scheduler.run())
        await until(lambda: scheduler.done() or any(line["event"] == "store_not_writable" for line in logs))
    await bench.database.run(pages("1000000"))
    bench.bells.ring()
    await until(lambda: scheduler.done() or run.run_id in bench.enqueued)
    assert not scheduler.done()
    scheduler.cancel()
    assert await bench.events() > before


async def test_a_damaged_snapshot_fails_the_run_before_it_is_read(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    (bench.snapshot / PGEN).write_bytes(b"cut or grown")
    with pytest.raises(HansaError):
        await bench.executions.claim(run.run_id, "worker-1")
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("FAILED", "STAGING_FAILED")


async def test_a_snapshot_that_has_gone_fails_the_run(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    (bench.snapshot / SNAPSHOT_FILE).unlink()
    with pytest.raises(HansaError):
        await bench.executions.claim(run.run_id, "worker-1")
    assert (await bench.run(run.run_id)).reason == "STAGING_FAILED"


def datasets(bench: Bench) -> Datasets:
    return Datasets(
        database=bench.database,
        state=bench.state,
        reporter=WireReporter("FI"),
        bells=bench.bells,
        clock=lambda: bench.now,
    )


async def test_a_dataset_that_a_queued_run_needs_cannot_be_removed(bench: Bench) -> None:
    await bench.offer(offer(job()))
    with pytest.raises(HansaError) as refused:
        await datasets(bench).remove("FI-lct")
    assert refused.value.reason is Reason.DATASET_IN_USE
    assert bench.snapshot.exists()


async def test_a_strange_file_among_the_datasets_does_not_keep_the_agent_from_starting(bench: Bench) -> None:
    (bench.state.datasets / "notes.txt").write_text("mine")
    await datasets(bench).sweep()
    assert (bench.state.datasets / "notes.txt").exists()
    assert bench.snapshot.exists()


# --- leases ------------------------------------------------------------------------------


async def test_an_agent_that_slept_itself_takes_no_execution_from_its_worker(bench: Bench) -> None:
    run = await bench.running(job(deadline=timedelta(hours=1)))
    scheduler = asyncio.create_task(bench.scheduler.run())
    await until(lambda: not bench.bells.queue.is_set())
    bench.now += BEAT_PATIENCE * 4
    bench.bells.ring()
    await until(lambda: not bench.bells.queue.is_set())
    await bench.executions.beat(run.run_id, run.execution)
    scheduler.cancel()
    still = await bench.run(run.run_id)
    assert (still.state, still.execution) == ("RUNNING", run.execution)


async def test_a_summary_that_trips_the_rules_ends_the_run_and_releases_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await bench.running(job())
    monkeypatch.setattr("node_agent.airlock.gate.clear_allele_counts", lambda *_, **__: 1 / 0)
    await bench.executions.finish(summary(run))
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("FAILED", "SUMMARY_INVALID")


# --- the local API ------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "size"), [("claim", (1 << 20) + 1), ("finish", 2 * SUMMARY_BYTES + (1 << 20) + 1)])
async def test_a_request_without_an_end_is_refused_before_it_fills_the_memory(
    bench: Bench, tmp_path: Path, path: str, size: int
) -> None:
    state = StateFolder(tmp_path / "state")
    api = LocalApi(
        executions=bench.executions,
        datasets=datasets(bench),
        airlock=bench.airlock,
        approvals=bench.approvals,
        policy=PolicyChanges(book=PolicyBook(state.policy_file), database=bench.database, clock=lambda: bench.now),
        audit=AuditTrail(database=bench.database),
        backups=Backups(state=state, clock=lambda: bench.now),
        views=Views(
            node="FI",
            federation="demo",
            state=state,
            database=bench.database,
            link=dict,
            policy_digest=str,
            trust=dict,
        ),
    )
    given_out = 0

    async def body() -> Any:
        nonlocal given_out
        while given_out < 2 * size:
            given_out += 1 << 20
            yield b"x" * (1 << 20)

    transport = httpx.ASGITransport(api.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
        response = await client.post(f"/v1/worker/{path}", content=body())
    assert (response.status_code, response.json()["reason"]) == (400, "MALFORMED")
    assert given_out <= size + (2 << 20)
