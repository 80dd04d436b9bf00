"""T-C2: what was judged once is not judged again, whatever the coordinator sends and whenever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from hansa.contract.job import JobSpec
from hansa.contract.limits import CLOCK_TOLERANCE
from node_agent.executions import Finish, Outcome
from node_agent.retention import Retention
from node_agent.store.models import LedgerRow, RunRow
from tests.support.agent import Bench, collected, job, make_bench, offer, open_bench, signed_as


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


async def released(bench: Bench, spec: JobSpec) -> RunRow:
    run = await bench.running(spec)
    finish = Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=collected())
    await bench.executions.finish(finish)
    return await bench.run(run.run_id)


async def ledger_size(bench: Bench) -> int:
    return await bench.database.run(lambda session: session.scalar(select(func.count()).select_from(LedgerRow)) or 0)


def forget_run(name: str) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        session.execute(delete(RunRow).where(RunRow.run_id == name))

    return work


async def test_a_released_job_that_comes_again_is_not_run_again(bench: Bench) -> None:
    spec = job()
    run = await released(bench, spec)
    bench.now += timedelta(seconds=1)
    for attempt in (1, 2):
        again = await bench.offer(offer(spec, attempt=attempt))
        assert (again.state, again.attempt, again.execution) == ("RELEASED", 1, run.execution)


async def test_a_released_job_that_comes_again_after_a_restart_is_not_run_again(bench: Bench) -> None:
    spec = job()
    await released(bench, spec)
    bench.database.close()
    again = open_bench(bench.state, bench.world)
    try:
        again.now = bench.now + timedelta(minutes=1)
        assert (await again.offer(offer(spec, attempt=2))).state == "RELEASED"
    finally:
        again.database.close()


async def test_the_ledger_outlives_the_run_also_over_a_restart(bench: Bench) -> None:
    spec = job()
    run = await released(bench, spec)
    await bench.database.run(forget_run(run.run_id))
    bench.database.close()
    again = open_bench(bench.state, bench.world)
    try:
        replayed = await again.offer(offer(spec))
        assert (replayed.state, replayed.reason) == ("DECLINED", "JOB_REPLAYED")
    finally:
        again.database.close()


async def test_a_jobs_id_or_nonce_in_other_bytes_is_a_replay(bench: Bench) -> None:
    spec = job()
    await bench.offer(offer(spec))
    for other in (job(nonce=spec.nonce), job(job_id=spec.job_id)):
        signed = offer(other, attempt=2)
        if other.job_id == spec.job_id:
            # As if the run of the first were not there any more.
            await bench.database.run(forget_run(signed.run_id))
        run = await bench.offer(signed)
        assert (run.state, run.reason) == ("DECLINED", "JOB_REPLAYED")


async def test_a_job_made_of_two_earlier_ones_is_a_replay(bench: Bench) -> None:
    first, second = job(), job()
    for spec in (first, second):
        await bench.offer(offer(spec))
    mixed = job(job_id=first.job_id, nonce=second.nonce)
    await bench.database.run(forget_run(offer(mixed).run_id))
    assert (await bench.offer(offer(mixed))).reason == "JOB_REPLAYED"


async def test_a_retry_of_the_same_bytes_after_a_failure_is_none(bench: Bench) -> None:
    spec = job()
    run = await bench.running(spec)
    await bench.executions.finish(Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.FAILED))
    assert (await bench.run(run.run_id)).state == "FAILED"
    again = await bench.offer(offer(spec, attempt=2))
    assert (again.state, again.attempt) == ("QUEUED", 2)


async def test_a_forgery_does_not_take_the_true_jobs_place_in_the_ledger(bench: Bench) -> None:
    spec = job()
    forged = replace(signed_as(spec), signature=bytes(64))
    run = await bench.offer(offer(spec, signed=forged))
    assert run.reason == "SIGNATURE_INVALID"
    assert await ledger_size(bench) == 0
    assert (await bench.offer(offer(spec, attempt=2))).state == "QUEUED"


async def test_the_ledger_forgets_a_job_only_once_its_deadline_alone_refuses_it(bench: Bench) -> None:
    spec = job(deadline=timedelta(minutes=30))
    await bench.offer(offer(spec))
    retention = Retention(
        database=bench.database, state=bench.state, policy=lambda: bench.policy, clock=lambda: bench.now
    )
    bench.now = spec.not_after + CLOCK_TOLERANCE
    await retention.purge()
    assert await ledger_size(bench) == 1
    bench.now += timedelta(seconds=1)
    await retention.purge()
    assert await ledger_size(bench) == 0
    await bench.step()
    late = await bench.offer(offer(spec, attempt=2))
    assert (late.state, late.reason) == ("DECLINED", "DEADLINE_PASSED")
