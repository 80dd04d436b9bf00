"""What people, operators and time do in a federation: each journey reaches some crash points and checks its outcome.

A journey knows nothing of crashes. It insists, as its people do, and must come
to the same end whoever died meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

from coordinator.store.summaries import SummaryRepository
from hansa.contract import envelope
from hansa.contract.approval import JobApproval
from hansa.contract.decision import ReleaseDecision
from hansa.contract.digests import digest
from hansa.contract.envelope import APPROVAL_TYPE, DECISION_TYPE, to_json
from hansa.contract.errors import Reason
from hansa.contract.ids import run_id
from hansa.contract.job import JobSpec
from hansa.contract.states import JobState, RunState
from hansa.runtime.clock import utc_now
from hansa.v1 import job_service_pb2 as wire
from node_agent.store.models import SummaryRow
from tests.support.crash_operations import (
    a_checkpoint,
    a_fork,
    a_quarantine,
    a_restored_node,
    an_erasure,
    coordinator_restarts,
    datasets,
    evidence,
    membership,
    misfits,
    node_restarts,
    publication,
    renewal,
)
from tests.support.crash_steps import (
    HOLDER,
    a_job,
    approve_standing,
    call,
    ended,
    held,
    job_spec,
    nothing_left,
    released_once,
    run,
    run_is,
    submit,
)
from tests.support.crash_world import NODE, CrashWorld
from tests.support.live_coordinator import FEDERATION

CHECKER: Final = "checker-fi"
Journey = Callable[[CrashWorld], Awaitable[None]]


# --- journeys of jobs -----------------------------------------------------------------


async def a_held_job(world: CrashWorld) -> None:
    """A job that runs for longer than one beat."""
    spec = job_spec(world)
    with held(world):
        name = await submit(world, spec)
        await run_is(world, name, RunState.RUNNING)
        begun = await _beat_at(world, name)

        async def beaten() -> bool:
            return bool(await _beat_at(world, name) != begun)

        await world.until(beaten, "a beat")
    await released_once(world, spec)


async def _beat_at(world: CrashWorld, name: str) -> Any:
    found = await run(world, name)
    return found and (found.beat_at, found.execution)


async def cancelled(world: CrashWorld) -> None:
    """A job that its researcher cancels while it runs."""
    spec = job_spec(world)
    with held(world):
        name = await submit(world, spec)
        await run_is(world, name, RunState.RUNNING)
        request = wire.CancelJobRequest(request_id=uuid4().hex, job_id=spec.job_id)
        await world.insist(lambda: call(world, "CancelJob", request), done=frozenset({Reason.JOB_ENDED}))
        await ended(world, spec, JobState.CANCELLED, RunState.CANCELLED)
    await nothing_left(world, name)


async def cancelled_unseen(world: CrashWorld) -> None:
    """A job that is cancelled before any worker has heard of it."""
    spec = job_spec(world)
    world.worker.is_deaf = True
    try:
        name = await submit(world, spec)
        await run_is(world, name, RunState.STAGING)
        request = wire.CancelJobRequest(request_id=uuid4().hex, job_id=spec.job_id)
        await world.insist(lambda: call(world, "CancelJob", request), done=frozenset({Reason.JOB_ENDED}))
        await ended(world, spec, JobState.CANCELLED, RunState.CANCELLED)
    finally:
        world.worker.is_deaf = False
    await nothing_left(world, name)


async def expired(world: CrashWorld) -> None:
    """A job that no worker takes before its deadline; the node's clock is behind the coordinator's."""
    spec = job_spec(world, life=timedelta(seconds=2))
    world.worker.is_deaf, world.clock.shift, world.in_real_time = True, timedelta(seconds=-3), True
    await submit(world, spec)
    await ended(world, spec, JobState.EXPIRED, RunState.EXPIRED)
    name = run_id(spec.job_id, NODE, 1)

    async def over() -> bool:
        # By its own clock, or because the coordinator had it cancelled.
        found = await run(world, name)
        return found is not None and found.state in (RunState.EXPIRED, RunState.CANCELLED)

    await world.until(over, "the run's end at the node")
    await nothing_left(world, name)
    world.worker.is_deaf = world.in_real_time = False


async def a_lost_worker(world: CrashWorld) -> None:
    """A job whose worker dies with it; the next execution ends it."""
    world.worker.armed = "claim-unheard"
    spec = job_spec(world)
    name = await submit(world, spec)
    await released_once(world, spec)
    found = await run(world, name)
    assert found is not None
    assert found.execution > 1


async def a_broker_away(world: CrashWorld) -> None:
    """A job whose message the broker does not take."""
    world.worker.lost_messages = 1
    await a_job(world)


# --- decisions of people ----------------------------------------------------------------


async def _release_mode(world: CrashWorld, mode: str) -> None:
    current = (await world.local("policy"))["policy"]
    await world.local("put_policy", {**current, "release": {**current["release"], "mode": mode}}, by="operator-fi")
    assert (await world.local("policy"))["policy"]["release"]["mode"] == mode


async def _decided(world: CrashWorld, decision: Any, verb: str) -> JobSpec:
    """Let the output checker decide on a job's answer."""
    await _release_mode(world, "manual")
    spec = job_spec(world)
    name = await submit(world, spec)
    await run_is(world, name, RunState.AWAITING_RELEASE)
    row = await world.at_node(lambda session: session.get_one(SummaryRow, name))
    made = ReleaseDecision(
        node=NODE,
        run_id=name,
        summary_digest=f"sha256:{row.digest.hex()}",
        decision=decision,
        reason="as it should be",
        checker=CHECKER,
        at=utc_now(),
    )
    signed = envelope.sign(DECISION_TYPE, made.to_bytes(), key_id=CHECKER, key=world.trust.keys[CHECKER])
    # Who asks again after it was done is told that there is nothing to decide.
    await world.local("decide", name, verb, to_json(signed), done=frozenset({Reason.RELEASE_CONFLICT}))
    await _release_mode(world, "auto")
    return spec


async def released_by_a_person(world: CrashWorld) -> None:
    """A policy change, and a job whose answer a person releases."""
    await released_once(world, await _decided(world, "RELEASE", "release"))


async def withheld_by_a_person(world: CrashWorld) -> None:
    """A job whose answer a person withholds."""
    spec = await _decided(world, "WITHHOLD", "withhold")
    await ended(world, spec, JobState.WITHHELD, RunState.WITHHELD)
    assert (
        await world.at_coordinator(lambda session: SummaryRepository(session).content(run_id(spec.job_id, NODE, 1)))
        is None
    )


async def _no_standing_approval(world: CrashWorld) -> None:
    for known in await world.local("approvals"):
        if not known["revoked_at"]:
            await world.local("revoke_approval", known["id"], by=HOLDER)


async def approved_once(world: CrashWorld) -> None:
    """A standing approval is revoked; a job waits, and its data holder approves just it."""
    await _no_standing_approval(world)
    spec = job_spec(world)
    name = await submit(world, spec)
    await run_is(world, name, RunState.AWAITING_APPROVAL)
    approval = JobApproval(
        approval_id=str(uuid4()),
        federation=FEDERATION,
        node=NODE,
        job_id=spec.job_id,
        job_digest=digest(spec.to_bytes()),
        approver=HOLDER,
        at=utc_now(),
    )
    signed = envelope.sign(APPROVAL_TYPE, approval.to_bytes(), key_id=HOLDER, key=world.trust.keys[HOLDER])
    await world.local("approve", name, to_json(signed), done=frozenset({Reason.APPROVAL_CONFLICT}))
    await released_once(world, spec)
    await approve_standing(world)


async def declined(world: CrashWorld) -> None:
    """A job that its data holder declines."""
    await _no_standing_approval(world)
    spec = job_spec(world)
    name = await submit(world, spec)
    await run_is(world, name, RunState.AWAITING_APPROVAL)
    why = {"reason": "not this one", "by": HOLDER}
    await world.local("decline", name, **why, done=frozenset({Reason.APPROVAL_CONFLICT}))
    await ended(world, spec, JobState.DECLINED, RunState.DECLINED)
    await nothing_left(world, name)
    await approve_standing(world)


JOURNEYS: Final[Mapping[str, Journey]] = {
    journey.__name__: journey
    for journey in (
        a_job,
        a_held_job,
        cancelled,
        cancelled_unseen,
        expired,
        a_lost_worker,
        a_broker_away,
        released_by_a_person,
        withheld_by_a_person,
        approved_once,
        declined,
        datasets,
        publication,
        renewal,
        membership,
        a_quarantine,
        a_restored_node,
        coordinator_restarts,
        node_restarts,
        a_checkpoint,
        evidence,
        an_erasure,
        a_fork,
        misfits,
    )
}
