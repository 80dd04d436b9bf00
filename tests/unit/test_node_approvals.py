"""A data holder's yes and no at the agent: who counts, what it leads to, what is written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from hansa.contract.approval import Approval
from hansa.contract.digests import digest
from hansa.contract.directory import Role
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec
from node_agent.airlock.gate import RELEASE
from node_agent.approval_records import approvals_of
from node_agent.audit.trail import AuditTrail
from node_agent.executions import Finish, Outcome
from node_agent.store.models import RunRow
from tests.support.admission_cases import person
from tests.support.agent import (
    HOLDER,
    OPEN_POLICY,
    Bench,
    approve_job,
    approved_by,
    collected,
    job,
    make_bench,
    offer,
    pinned,
    standing,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A node whose data holder has approved nothing yet."""
    made = make_bench(tmp_path, approved=False)
    yield made
    made.database.close()


async def waiting(bench: Bench, spec: JobSpec | None = None) -> tuple[JobSpec, RunRow]:
    spec = spec or job()
    run = await bench.offer(offer(spec))
    assert run.state == "AWAITING_APPROVAL"
    return spec, run


async def log(bench: Bench) -> list[dict[str, Any]]:
    found = await AuditTrail(database=bench.database).entries(after=None, limit=100)
    return list(found["entries"])


async def refused(bench: Bench, signed: Signed, run: RunRow | None = None) -> Reason:
    taken = bench.approvals.add(signed) if run is None else bench.approvals.approve(run.run_id, signed)
    with pytest.raises(HansaError) as caught:
        await taken
    return caught.value.reason


async def test_a_job_without_an_approval_waits_and_says_so_to_the_coordinator(bench: Bench) -> None:
    _, run = await waiting(bench)
    await bench.step()
    assert await bench.reports(run.run_id) == ["AWAITING_APPROVAL"]
    assert bench.enqueued == []
    (entry,) = await log(bench)
    assert (entry["action"], entry["facts"]["directory"]) == ("offer_waits", 1)


async def test_a_data_holders_yes_queues_exactly_this_job_and_is_kept_for_the_release(bench: Bench) -> None:
    (spec, run), (_, other) = await waiting(bench), await waiting(bench)
    signed = approved_by(approve_job(spec))
    approved = await bench.approvals.approve(run.run_id, signed)
    assert approved.state == "QUEUED"
    assert (await bench.run(other.run_id)).state == "AWAITING_APPROVAL"
    held = await bench.database.run(lambda session: approvals_of(session, approved))
    assert held == (digest(signed.payload),)
    entry = (await log(bench))[-1]
    assert (entry["action"], entry["facts"]["approval_digest"]) == ("job_approved", digest(signed.payload))
    assert entry["subjects"] == {"approver": HOLDER}


async def test_an_approved_job_runs_to_its_release(bench: Bench) -> None:
    spec, run = await waiting(bench)
    await bench.approvals.approve(run.run_id, approved_by(approve_job(spec)))
    await bench.step()
    await bench.executions.claim(run.run_id, "worker")
    summary = Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected())
    await bench.executions.finish(summary)
    assert (await bench.run(run.run_id)).state == "RELEASED"


async def test_a_job_that_nobody_approves_expires_with_its_deadline(bench: Bench) -> None:
    _, run = await waiting(bench)
    bench.now += timedelta(minutes=31)
    await bench.step()
    assert (await bench.run(run.run_id)).state == "EXPIRED"


async def test_a_no_declines_the_job_for_good_and_is_written_down(bench: Bench) -> None:
    spec, run = await waiting(bench)
    declined = await bench.approvals.decline(run.run_id, HOLDER, "not our purpose")
    assert (declined.state, declined.reason) == ("DECLINED", "APPROVAL_REFUSED")
    assert (await log(bench))[-1]["subjects"] == {"by": HOLDER, "reason": "not our purpose"}
    assert await refused(bench, approved_by(approve_job(spec)), run) is Reason.APPROVAL_CONFLICT


def _job_approvals(spec: JobSpec) -> dict[str, tuple[Signed, Reason]]:
    good = approved_by(approve_job(spec))
    return {
        "signed by another key": (approved_by(approve_job(spec), "ada"), Reason.APPROVAL_INVALID),
        "another's signature under the holder's name": (
            replace(approved_by(approve_job(spec), "ada"), key_id=HOLDER),
            Reason.APPROVAL_INVALID,
        ),
        "a signature of nothing": (replace(good, signature=bytes(64)), Reason.APPROVAL_INVALID),
        "another type": (replace(good, payload_type="application/vnd.hansa.job.v1+json"), Reason.APPROVAL_INVALID),
        "changed after it was signed": (replace(good, payload=good.payload + b" "), Reason.APPROVAL_INVALID),
        "another job": (approved_by(approve_job(job())), Reason.APPROVAL_INVALID),
        "other bytes of the job": (
            approved_by(approve_job(spec, job_digest="sha256:" + "f" * 64)),
            Reason.APPROVAL_INVALID,
        ),
        "another node": (approved_by(approve_job(spec, node="ES")), Reason.APPROVAL_INVALID),
        "another federation": (approved_by(approve_job(spec, federation="other")), Reason.APPROVAL_INVALID),
        "in another's name": (approved_by(approve_job(spec, approver="bob"), HOLDER), Reason.APPROVAL_INVALID),
        "nobody's": (approved_by(approve_job(spec, approver="nobody")), Reason.APPROVAL_INVALID),
        "the node operator's": (approved_by(approve_job(spec, approver="operator-fi")), Reason.APPROVAL_INVALID),
        "a standing one": (approved_by(standing()), Reason.APPROVAL_INVALID),
        "not an approval": (replace(good, payload=b"{}"), Reason.APPROVAL_INVALID),
    }


@pytest.mark.parametrize("name", list(_job_approvals(job())))
async def test_an_approval_that_does_not_count_is_refused_written_down_and_changes_nothing(
    bench: Bench, name: str
) -> None:
    spec, run = await waiting(bench)
    signed, reason = _job_approvals(spec)[name]
    events = await bench.events()
    assert await refused(bench, signed, run) is reason
    assert (await bench.run(run.run_id)).state == "AWAITING_APPROVAL"
    assert await bench.events() == events
    assert await bench.approvals.all() == []
    entry = (await log(bench))[-1]
    assert (entry["action"], entry["facts"]["reason"]) == ("approval_refused", reason.value)


async def test_a_submitter_who_is_a_data_holder_too_does_not_approve_their_own_job(tmp_path: Path) -> None:
    policy = {**OPEN_POLICY, "approval": {"data_holders": [pinned("ada")]}}
    bench = make_bench(tmp_path, policy, approved=False)
    change = person("ada", roles=(Role.RESEARCHER, Role.DATA_HOLDER), nodes=("FI",))
    bench.world.change(people=change(bench.world.directory).people)
    bench.trust_now()
    spec, run = await waiting(bench, job(directory_version=2))
    assert await refused(bench, approved_by(approve_job(spec, approver="ada")), run) is Reason.SELF_APPROVAL
    await bench.approvals.add(approved_by(standing(approver="ada")))
    assert (await bench.run(run.run_id)).state == "AWAITING_APPROVAL"
    bench.database.close()


async def test_a_standing_approval_lets_go_on_what_waited_for_it_and_admits_what_comes(bench: Bench) -> None:
    _, run = await waiting(bench)
    _, large = await waiting(bench, job(parameters={"variants": "rs1,rs2"}))
    await bench.approvals.add(approved_by(standing(limits={"max_variants": 1})))
    assert (await bench.run(run.run_id)).state == "QUEUED"
    assert (await bench.run(large.run_id)).state == "AWAITING_APPROVAL"
    assert (await bench.offer(offer(job()))).state == "QUEUED"


@pytest.mark.parametrize(
    ("signed", "reason"),
    [
        (approved_by(standing(), "ada"), Reason.APPROVAL_INVALID),
        (approved_by(approve_job(job())), Reason.APPROVAL_INVALID),
        (approved_by(standing(node="ES")), Reason.APPROVAL_INVALID),
        (approved_by(standing(not_after=standing().not_before)), Reason.APPROVAL_INVALID),
    ],
)
async def test_a_standing_approval_that_does_not_count_is_refused(bench: Bench, signed: Signed, reason: Reason) -> None:
    assert await refused(bench, signed) is reason
    assert (await bench.offer(offer(job()))).state == "AWAITING_APPROVAL"


async def test_handing_in_the_same_approval_again_changes_nothing_and_its_id_is_for_it_alone(bench: Bench) -> None:
    approval = standing()
    signed = approved_by(approval)
    first = await bench.approvals.add(signed)
    size = len(await log(bench))
    assert (await bench.approvals.add(signed)).approval_id == first.approval_id
    assert len(await log(bench)) == size
    other: Approval = standing(approval_id=approval.approval_id, datasets=("FI-other",))
    assert await refused(bench, approved_by(other)) is Reason.IDEMPOTENCY_MISMATCH
    await bench.approvals.revoke(first.approval_id, "olga")
    assert await refused(bench, signed) is Reason.IDEMPOTENCY_MISMATCH


async def test_a_revoked_approval_admits_nothing_more_and_stops_what_runs(bench: Bench) -> None:
    approval = await bench.approvals.add(approved_by(standing()))
    run = await bench.running(job())
    queued = await bench.offer(offer(job()))
    row = await bench.approvals.revoke(approval.approval_id, "olga")
    assert (row.revoked_at, row.revoked_by) == (bench.now, "olga")
    assert (await bench.offer(offer(job()))).state == "AWAITING_APPROVAL"
    assert await bench.executions.beat(run.run_id, run.execution), "the worker is told to end it"
    summary = Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected())
    await bench.executions.finish(summary)
    await bench.step()
    with pytest.raises(HansaError):
        await bench.executions.claim(queued.run_id, "worker")
    for name in (run.run_id, queued.run_id):
        ended = await bench.run(name)
        assert (ended.state, ended.reason) == ("FAILED", "APPROVAL_REFUSED")
    actions = [entry["action"] for entry in await log(bench)]
    assert actions.count("approval_revoked") == 1
    assert actions.count("run_stopped") == 2
    assert "summary_released" not in actions


async def test_a_summary_that_waits_is_not_released_once_its_approval_is_revoked(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, {**OPEN_POLICY, "release": {"mode": "manual"}})
    run = await bench.running(job())
    summary = Finish(run_id=run.run_id, execution=1, outcome=Outcome.SUMMARY, summary=collected())
    await bench.executions.finish(summary)
    assert (await bench.run(run.run_id)).state == "AWAITING_RELEASE"
    (approval,) = await bench.approvals.all()
    await bench.approvals.revoke(approval.approval_id, "olga")
    await bench.decide(run.run_id, RELEASE, why="counts are large")
    ended = await bench.run(run.run_id)
    assert (ended.state, ended.reason) == ("WITHHELD", "APPROVAL_REFUSED")
    assert "summary_released" not in [entry["action"] for entry in await log(bench)]
    bench.database.close()


async def test_an_approval_that_is_not_there_cannot_be_revoked(bench: Bench) -> None:
    with pytest.raises(HansaError) as caught:
        await bench.approvals.revoke(str(uuid4()), "olga")
    assert caught.value.reason is Reason.APPROVAL_UNKNOWN


async def test_approving_judges_the_job_again_first(bench: Bench) -> None:
    spec, run = await waiting(bench)
    bench.policy = bench.policy.model_copy(
        update={"admission": bench.policy.admission.model_copy(update={"submitters": ()})}
    )
    ended = await bench.approvals.approve(run.run_id, approved_by(approve_job(spec)))
    assert (ended.state, ended.reason) == ("DECLINED", "SUBMITTER_NOT_ADMITTED")


async def test_a_newer_directory_alone_does_not_turn_a_waiting_job_away(bench: Bench) -> None:
    spec, run = await waiting(bench)
    bench.trust_changes(witnesses=())
    assert (await bench.offer(offer(job()))).reason == "DIRECTORY_ROLLBACK"
    approved = await bench.approvals.approve(run.run_id, approved_by(approve_job(spec)))
    assert approved.state == "QUEUED"


async def test_with_expired_trust_nobody_approves(bench: Bench) -> None:
    spec, run = await waiting(bench, job(deadline=timedelta(days=5)))
    bench.now += timedelta(days=2)
    assert await refused(bench, approved_by(approve_job(spec)), run) is Reason.TRUST_EXPIRED
    assert (await bench.run(run.run_id)).state == "AWAITING_APPROVAL"


async def test_a_retry_of_an_approved_job_needs_no_second_yes(bench: Bench) -> None:
    spec, run = await waiting(bench)
    await bench.approvals.approve(run.run_id, approved_by(approve_job(spec)))
    await bench.step()
    await bench.executions.claim(run.run_id, "worker")
    await bench.executions.finish(Finish(run_id=run.run_id, execution=1, outcome=Outcome.FAILED))
    assert (await bench.offer(offer(spec, attempt=2))).state == "QUEUED"


async def test_what_a_data_holder_is_asked_shows_the_whole_job(bench: Bench) -> None:
    spec, run = await waiting(bench, job(purpose="milk"))
    asked = await bench.approvals.request(run.run_id)
    assert asked["job_digest"] == digest(spec.to_bytes())
    assert (asked["submitter"], asked["purpose"], asked["nodes"]) == ("ada", "milk", ["FI", "ES"])
    await bench.approvals.decline(run.run_id, "olga", "no")
    with pytest.raises(HansaError) as caught:
        await bench.approvals.request(run.run_id)
    assert caught.value.reason is Reason.APPROVAL_CONFLICT
