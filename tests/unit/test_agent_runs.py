"""The way of a run through the agent, on a real store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hansa.contract.digests import chain_hash
from hansa.contract.envelope import JOB_TYPE
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.airlock.gate import RELEASE, WITHHOLD
from node_agent.airlock.released import NotReleasedError, released_summary
from node_agent.config import StateFolder
from node_agent.executions import Finish, Outcome
from node_agent.retention import Retention
from node_agent.run_rules import BEAT_PATIENCE, MAX_EXECUTIONS, MESSAGE_PATIENCE
from node_agent.store.models import SummaryRow
from node_agent.store.outbox import command_cursor
from tests.support.agent import OPEN_POLICY, Bench, collected, job, make_bench, offer, signed_as


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


def summary(run_id: str, execution: int, text: str | None = None) -> Finish:
    return Finish(run_id=run_id, execution=execution, outcome=Outcome.SUMMARY, summary=text or collected())


async def test_an_admitted_job_runs_and_its_cleared_summary_is_released(bench: Bench) -> None:
    run = await bench.running(job())
    await bench.executions.finish(summary(run.run_id, run.execution))

    row = await bench.database.run(lambda session: session.get_one(SummaryRow, run.run_id))
    released = released_summary(row)
    assert hashlib.sha256(released.summary).digest() == released.digest
    assert b"carriers" not in released.summary
    assert await bench.reports(run.run_id) == [
        "ACCEPTED",
        "QUEUED",
        "STAGING",
        "RUNNING",
        "CHECKING",
        "RELEASED",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"submitter": "eve"}, "SUBMITTER_NOT_ADMITTED"),
        ({"parameters": {"region": "2:1-9000000"}}, "REGION_TOO_LARGE"),
        ({"parameters": {"variants": "x"}}, "PARAMETER_INVALID"),
    ],
)
async def test_what_the_policy_does_not_admit_is_declined(bench: Bench, change: dict[str, Any], reason: str) -> None:
    run = await bench.offer(offer(job(**change)))
    assert (run.state, run.reason) == ("DECLINED", reason)


async def test_a_node_without_a_policy_declines_everything(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, {})
    run = await bench.offer(offer(job()))
    assert (run.state, run.reason) == ("DECLINED", "SUBMITTER_NOT_ADMITTED")
    bench.database.close()


async def test_an_offer_whose_job_names_another_run_is_declined(bench: Bench) -> None:
    mixed = offer(job())
    run = await bench.offer(type(mixed)(**{**{n: getattr(mixed, n) for n in mixed.__slots__}, "run_id": "0" * 32}))
    assert (run.state, run.reason) == ("DECLINED", "JOB_INVALID")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key_id": "eve"}, "SIGNATURE_INVALID"),
        ({"payload_type": "text/plain"}, "JOB_INVALID"),
        ({"signature": b""}, "SIGNATURE_INVALID"),
        ({"signature": b"\0" * 64}, "SIGNATURE_INVALID"),
    ],
)
async def test_a_job_in_another_name_than_its_signers_is_declined(
    bench: Bench, change: dict[str, Any], reason: str
) -> None:
    run = await bench.offer(replace(offer(job()), **change))
    assert (run.state, run.reason) == ("DECLINED", reason)


async def test_a_repeated_offer_changes_nothing(bench: Bench) -> None:
    spec = job()
    await bench.offer(offer(spec))
    before = await bench.events()
    await bench.offer(offer(spec))
    assert await bench.events() == before


async def test_only_the_highest_execution_may_commit(bench: Bench) -> None:
    run = await bench.running(job())
    bench.now += BEAT_PATIENCE + timedelta(seconds=1)
    await bench.step()
    again = await bench.run(run.run_id)
    assert (again.state, again.execution) == ("STAGING", run.execution + 1)
    await bench.executions.claim(run.run_id, "worker-2")
    with pytest.raises(HansaError) as refused:
        await bench.executions.finish(summary(run.run_id, run.execution))
    assert refused.value.reason is Reason.EXECUTION_SUPERSEDED
    await bench.executions.finish(summary(run.run_id, run.execution + 1))
    assert (await bench.run(run.run_id)).state == "RELEASED"


async def test_a_run_whose_workers_are_lost_again_and_again_fails_as_lost(bench: Bench) -> None:
    run = await bench.running(job())
    for _ in range(MAX_EXECUTIONS - 1):
        bench.now += BEAT_PATIENCE + timedelta(seconds=1)
        await bench.step()
        await bench.executions.claim(run.run_id, "worker")
    bench.now += BEAT_PATIENCE + timedelta(seconds=1)
    await bench.step()
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason, ended.execution) == ("FAILED", "RUN_LOST", MAX_EXECUTIONS)


async def test_a_beat_keeps_the_lease(bench: Bench) -> None:
    run = await bench.running(job(deadline=timedelta(hours=1)))
    for _ in range(5):
        bench.now += BEAT_PATIENCE - timedelta(seconds=1)
        assert not await bench.executions.beat(run.run_id, run.execution)
        await bench.step()
    assert (await bench.run(run.run_id)).execution == run.execution


async def test_a_message_that_the_broker_lost_is_sent_again(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    await bench.step()
    await bench.step()
    assert bench.enqueued == [run.run_id]
    bench.now += MESSAGE_PATIENCE + timedelta(seconds=1)
    await bench.step()
    assert bench.enqueued == [run.run_id] * 2
    assert (await bench.run(run.run_id)).execution == 1


async def test_a_second_claim_of_one_execution_is_refused(bench: Bench) -> None:
    run = await bench.running(job())
    with pytest.raises(HansaError) as refused:
        await bench.executions.claim(run.run_id, "worker-2")
    assert refused.value.reason is Reason.EXECUTION_SUPERSEDED


async def test_no_more_runs_are_started_than_there_are_slots(bench: Bench) -> None:
    for _ in range(4):
        await bench.offer(offer(job()))
    await bench.step()
    assert len(bench.enqueued) == bench.policy.admission.max_active_runs


async def test_a_summary_that_departs_from_its_schema_fails_the_run(bench: Bench) -> None:
    run = await bench.running(job())
    await bench.executions.finish(summary(run.run_id, run.execution, '{"rows": ["HG00171"]}'))
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("FAILED", "SUMMARY_INVALID")


async def test_a_summary_about_variants_that_nobody_asked_for_fails_the_run(bench: Bench) -> None:
    run = await bench.running(job(parameters={"variants": "1:5:A:C"}))
    await bench.executions.finish(summary(run.run_id, run.execution))
    assert (await bench.run(run.run_id)).reason == "SUMMARY_INVALID"


async def test_what_too_few_carry_leaves_no_figure(bench: Bench) -> None:
    run = await bench.running(job())
    await bench.executions.finish(summary(run.run_id, run.execution, collected(carriers=9, others=99)))
    row = await bench.database.run(lambda session: session.get_one(SummaryRow, run.run_id))
    assert b'"values":[]' in row.summary
    assert b"15:28365618" not in row.summary


async def test_in_manual_mode_nothing_leaves_before_a_person_decides(manual: Bench) -> None:
    run = await manual.running(job())
    await manual.executions.finish(summary(run.run_id, run.execution))
    row = await manual.database.run(lambda session: session.get_one(SummaryRow, run.run_id))
    assert (await manual.run(run.run_id)).state == "AWAITING_RELEASE"
    with pytest.raises(NotReleasedError):
        released_summary(row)
    await manual.decide(run.run_id, RELEASE, why="counts are large")
    assert (await manual.run(run.run_id)).state == "RELEASED"
    with pytest.raises(HansaError) as twice:
        await manual.decide(run.run_id, WITHHOLD, why="second thoughts")
    assert twice.value.reason is Reason.RELEASE_CONFLICT


async def test_a_withheld_summary_says_withheld_and_nothing_else(manual: Bench) -> None:
    run = await manual.running(job())
    await manual.executions.finish(summary(run.run_id, run.execution))
    await manual.decide(run.run_id, WITHHOLD, why="the cohort is special")
    ended = await manual.run(run.run_id)
    assert (ended.state, ended.reason) == ("WITHHELD", "WITHHELD")


async def test_a_decision_needs_a_reason(manual: Bench) -> None:
    run = await manual.running(job())
    await manual.executions.finish(summary(run.run_id, run.execution))
    with pytest.raises(HansaError) as refused:
        await manual.decide(run.run_id, RELEASE, why="  ")
    assert (refused.value.reason, refused.value.field) == (Reason.DECISION_INVALID, "reason")


async def test_bytes_changed_after_the_decision_do_not_leave(manual: Bench) -> None:
    run = await manual.running(job())
    await manual.executions.finish(summary(run.run_id, run.execution))
    await manual.decide(run.run_id, RELEASE, why="fine")
    row = await manual.database.run(lambda session: session.get_one(SummaryRow, run.run_id))
    assert row.outgoing is not None
    row.outgoing = row.outgoing + b" "
    with pytest.raises(NotReleasedError):
        released_summary(row)


async def test_past_its_deadline_a_run_expires_and_its_worker_is_told(bench: Bench) -> None:
    run = await bench.running(job(deadline=timedelta(seconds=5)))
    bench.now += timedelta(seconds=6)
    await bench.step()
    assert (await bench.run(run.run_id)).state == "EXPIRED"
    with pytest.raises(HansaError):
        await bench.executions.beat(run.run_id, run.execution)


def command(previous: Head, **body: Any) -> node_service_pb2.Command:
    data = node_service_pb2.CommandBody(**body).SerializeToString(deterministic=True)
    return node_service_pb2.Command(epoch=1, seq=previous.seq + 1, prev_hash=previous.hash, body=data)


async def test_cancelled_is_reported_only_once_nothing_runs(bench: Bench) -> None:
    run = await bench.running(job())
    cancel = command(Head(), cancel=node_service_pb2.Cancel(run_id=run.run_id, attempt=1))
    await bench.database.run(lambda session: bench.commands.apply(session, cancel, bench.now))
    assert (await bench.run(run.run_id)).state == "CANCELLING"
    assert await bench.executions.beat(run.run_id, run.execution)
    await bench.executions.finish(Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.CANCELLED))
    assert (await bench.run(run.run_id)).state == "CANCELLED"


async def test_a_run_that_has_not_started_is_cancelled_at_once(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    cancel = command(Head(), cancel=node_service_pb2.Cancel(run_id=run.run_id, attempt=1))
    await bench.database.run(lambda session: bench.commands.apply(session, cancel, bench.now))
    assert (await bench.run(run.run_id)).state == "CANCELLED"


async def test_a_command_applies_once_and_a_gap_or_fork_applies_nothing(bench: Bench) -> None:
    spec = job()
    wire = node_service_pb2.Offer(
        run_id=offer(spec).run_id,
        job_id=spec.job_id,
        round=1,
        attempt=1,
        job=types_pb2.Envelope(
            payload_type=JOB_TYPE,
            payload=spec.to_bytes(),
            signatures=[types_pb2.Signature(key_id=spec.submitter, signature=signed_as(spec).signature)],
        ),
    )
    first = command(Head(), offer=wire)

    async def apply(item: node_service_pb2.Command) -> int:
        return (await bench.database.run(lambda s: bench.commands.apply(s, item, bench.now))).upto_seq

    assert await apply(first) == 1
    events = await bench.events()
    assert await apply(first) == 1
    assert await bench.events() == events
    gap = node_service_pb2.Command(epoch=1, seq=3, prev_hash=b"", body=first.body)
    fork = node_service_pb2.Command(epoch=1, seq=2, prev_hash=b"x" * 32, body=first.body)
    for bad in (gap, fork):
        with pytest.raises(HansaError) as refused:
            await apply(bad)
        assert refused.value.reason is Reason.PROTOCOL_VIOLATION
    cursor = await bench.database.run(command_cursor)
    assert cursor == Head(1, chain_hash(Head().hash, first.body))
    assert (await bench.run(wire.run_id)).state == "QUEUED"


async def test_the_folder_of_a_run_is_purged_once_its_time_is_over(bench: Bench, tmp_path: Path) -> None:
    run = await bench.running(job())
    await bench.executions.finish(summary(run.run_id, run.execution))
    state = StateFolder(tmp_path / "state")
    folder = state.runs / run.run_id
    (folder / "1").mkdir(parents=True)
    retention = Retention(database=bench.database, state=state, policy=lambda: bench.policy, clock=lambda: bench.now)
    await retention.purge()
    assert folder.exists()
    bench.now += timedelta(days=bench.policy.retention.run_days, seconds=1)
    await retention.purge()
    assert not folder.exists()
