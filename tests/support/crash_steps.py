"""The steps that journeys share: a job and its end, what has to hold on both sides, the dataset and its approval."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.api.frames import envelope_message
from coordinator.domain.records import JobRecord
from coordinator.store.audit_check import verify_log
from coordinator.store.catalogue import DatasetRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository
from coordinator.store.sessions import SessionRepository
from coordinator.store.summaries import SummaryRepository
from hansa.contract import envelope
from hansa.contract.approval import StandingApproval
from hansa.contract.envelope import APPROVAL_TYPE, to_json
from hansa.contract.errors import Reason
from hansa.contract.ids import run_id
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.states import JOB_TERMINAL, JobState, RunState
from hansa.runtime.clock import utc_now
from hansa.sdk.evidence import gather
from hansa.sdk.verification import Verifier, verify_evidence
from hansa.v1 import job_service_pb2 as wire
from hansa.v1.job_service_pb2_grpc import JobServiceStub
from node_agent.config import StateFolder
from node_agent.local_api.client import AgentClient as LocalClient
from node_agent.store.models import DatasetRow, EventRow, RunRow, SummaryRow
from node_agent.store.outbox import command_cursor, event_head, store_row
from tests.support.agent import SNAPSHOT, make_snapshot
from tests.support.crash_world import DATASET, NODE, CrashWorld
from tests.support.live_coordinator import CALL_SECONDS, FEDERATION, RITA
from tests.support.trust_world import PROJECT

VARIANT: Final = "15:28365618:A:G"
HOLDER: Final = "holder-fi"


# --- jobs ------------------------------------------------------------------------


def job_spec(world: CrashWorld, *, life: timedelta = timedelta(minutes=30)) -> JobSpec:
    """Return a new job of the researcher's for the node."""
    now = utc_now()
    return JobSpec(
        federation=FEDERATION,
        directory_version=world.trust.directory.version,
        job_id=str(uuid4()),
        nonce=uuid4().hex,
        submitter=RITA,
        project=PROJECT,
        analysis=world.trust.analysis,
        parameters={"variants": VARIANT},
        datasets=(DatasetRef(node=NODE, dataset=DATASET, snapshot=SNAPSHOT),),
        quorum=1,
        not_before=now - timedelta(seconds=1),
        not_after=now + life,
    )


async def submit(world: CrashWorld, spec: JobSpec) -> str:
    """Submit the job, as often as it takes; return its run at the node."""
    signed = envelope.sign(envelope.JOB_TYPE, spec.to_bytes(), key_id=RITA, key=world.trust.keys[RITA])
    request = wire.SubmitJobRequest(request_id=uuid4().hex, job=envelope_message(signed))
    await world.insist(lambda: call(world, "SubmitJob", request))
    return run_id(spec.job_id, NODE, 1)


async def call(world: CrashWorld, method: str, request: Any, person: str = RITA) -> Any:
    """Call JobService."""
    stub = getattr(JobServiceStub(world.live.people), method)
    return await stub(request, metadata=world.live.bearer(person), timeout=CALL_SECONDS)


async def job(world: CrashWorld, job_id: str) -> JobRecord:
    """Return the job as the coordinator's store has it."""
    found: JobRecord = await world.at_coordinator(lambda session: JobRepository(session).get(job_id))
    return found


async def run(world: CrashWorld, name: str) -> RunRow | None:
    """Return the run as the node's store has it."""
    return await world.at_node(lambda session: session.get(RunRow, name))


async def run_is(world: CrashWorld, name: str, state: RunState) -> None:
    """Wait until the run is in ``state`` at the node."""

    async def there() -> bool:
        found = await run(world, name)
        return found is not None and found.state == state

    await world.until(there, f"run {state}")


@contextmanager
def held(world: CrashWorld) -> Iterator[None]:
    world.worker.runner.go.clear()
    try:
        yield
    finally:
        world.worker.runner.go.set()


async def ended(world: CrashWorld, spec: JobSpec, state: JobState, run_state: RunState) -> None:
    """Wait for the job's end, which must be ``state`` with its run in ``run_state``; both sides must agree."""

    async def over() -> bool:
        found = await job(world, spec.job_id)
        return found.state in JOB_TERMINAL

    await world.until(over, "the job's end")
    found = await job(world, spec.job_id)
    row = await run(world, run_id(spec.job_id, NODE, 1))
    assert found.state is state, (found, row and (row.state, row.reason))
    assert [one.state for one in found.runs] == [run_state]
    if state is not JobState.EXPIRED:
        await run_is(world, run_id(spec.job_id, NODE, 1), run_state)


async def released_once(world: CrashWorld, spec: JobSpec) -> None:
    """The job is complete; its summary left once, is the same on both sides, and proves itself."""
    await ended(world, spec, JobState.COMPLETED, RunState.RELEASED)
    name = run_id(spec.job_id, NODE, 1)

    async def uploaded() -> bool:
        row = await world.at_node(lambda session: session.get_one(SummaryRow, name))
        return row.uploaded_at is not None

    await world.until(uploaded, "the node knows that its summary arrived")
    row = await world.at_node(lambda session: session.get_one(SummaryRow, name))
    content = await world.at_coordinator(lambda session: SummaryRepository(session).content(name))
    assert content == row.outgoing
    log = await world.local("audit", limit=1000)
    told = [one for one in log["entries"] if name in str(one)]
    assert [one["action"] for one in told].count("summary_released") == 1, told
    await verified(world, spec.job_id)


async def nothing_left(world: CrashWorld, name: str) -> None:
    """Nothing of the run was released, or waits to be."""
    assert await world.at_node(lambda session: session.get(SummaryRow, name)) is None
    assert await world.at_coordinator(lambda session: SummaryRepository(session).content(name)) is None


async def verified(world: CrashWorld, job_id: str) -> None:
    """Fetch the evidence as its researcher, until the witnesses have cosigned, and believe nobody."""

    async def proves() -> bool:
        files = await evidence_of(world, job_id)
        found = verify_evidence(files, Verifier(root=world.trust.root), job_id)
        assert all(step.pending for step in found.failed), found.failed
        return not found.failed

    await world.until(proves, "the evidence with its logs")


async def evidence_of(world: CrashWorld, job_id: str) -> dict[str, bytes]:
    stub = JobServiceStub(world.live.people)
    asked = wire.GetEvidenceRequest(job_id=job_id)
    stream = stub.GetEvidence(asked, metadata=world.live.bearer(RITA), timeout=CALL_SECONDS)
    return await gather((part.name, part.chunk) async for part in stream)


async def a_job(world: CrashWorld) -> None:
    """A job as most are."""
    spec = job_spec(world)
    await submit(world, spec)
    await released_once(world, spec)


# --- the node's books against the coordinator's -----------------------------------


async def sound(world: CrashWorld) -> None:
    """Both chains stand at the same place on both sides, both logs verify, no file is left half done."""

    async def level() -> bool:
        events, commands = await world.at_node(lambda session: (event_head(session), command_cursor(session)))
        theirs, cursor = await world.at_coordinator(
            lambda session: (
                CommandRepository(session).head(NODE),
                SessionRepository(session).standing(NODE).store.event_cursor,
            )
        )
        return bool(events == cursor and commands == theirs)

    await world.until(level, "both chains are level")
    assert (await world.at_coordinator(verify_log)).first_wrong is None
    assert (await world.local("verify_audit"))["fault"] is None
    count, due = await world.at_node(_events)
    assert count == due, "an event is missing in the node's outbox"
    owned = await world.at_node(
        lambda session: {(row.dataset_id, Path(row.folder).name) for row in session.scalars(select(DatasetRow))}
    )
    assert await asyncio.to_thread(_left_over, world.state, owned) == []


def _events(session: Session) -> tuple[int, int]:
    """Return how many events there are, and how many there should be: a restored store begins behind its base."""
    count = session.scalar(select(func.count()).select_from(EventRow))
    return count or 0, event_head(session).seq - store_row(session).event_base_seq


def _left_over(state: StateFolder, owned: set[tuple[str, str]]) -> list[str]:
    """Return the files and folders that only a death can have left behind."""
    snapshots = {(path.parent.name, path.name) for path in state.datasets.glob("*/*") if path.is_dir()}
    staged = [*state.datasets.glob(".incoming-*"), *state.analyses.glob(".part-*")]
    parts = [path for folder in (state.keys, state.trust) for path in folder.rglob(".*.part")]
    return [*(f"snapshot {name}" for name in snapshots ^ owned), *map(str, (*staged, *parts))]


# --- what the node offers, and to whom ----------------------------------------------


async def prepare(world: CrashWorld) -> None:
    """Offer the dataset, and have the data holder approve."""
    await world.until(partial(trusted, world), "the node has its trust")
    await add_dataset(world, DATASET)
    await approve_standing(world)


async def trusted(world: CrashWorld) -> bool:
    view = world.agent._trust.current()
    return view is not None and view.directory.version == world.trust.directory.version


async def approve_standing(world: CrashWorld) -> StandingApproval:
    """Give the data holder's standing approval."""
    now = utc_now()
    approval = StandingApproval(
        approval_id=str(uuid4()),
        federation=FEDERATION,
        node=NODE,
        project=PROJECT,
        analysis=world.trust.analysis,
        datasets=(DATASET,),
        approver=HOLDER,
        not_before=now - timedelta(seconds=1),
        not_after=now + timedelta(days=1),
    )
    signed = envelope.sign(APPROVAL_TYPE, approval.to_bytes(), key_id=HOLDER, key=world.trust.keys[HOLDER])
    await world.local("add_approval", to_json(signed))
    return approval


async def add_dataset(world: CrashWorld, name: str) -> None:
    """Take a snapshot in as a dataset, and wait until the coordinator offers it."""
    staging = world.state.datasets / f".incoming-{uuid4().hex}"
    client = LocalClient(world.state)

    def stage_and_add() -> Any:
        # Each time anew, as the command does: an agent that starts sweeps away what was staged.
        if not staging.exists():
            make_snapshot(staging)
        return client.add_dataset(name, staging)

    refusals = frozenset({Reason.DATASET_EXISTS})
    await world.insist(lambda: asyncio.to_thread(stage_and_add), done=refusals)
    # What was refused is the command's own to remove.
    await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
    await world.until(partial(offered, world, {name}), f"{name} is offered")


async def offered(world: CrashWorld, names: set[str]) -> bool:
    def read(session: Session) -> bool:
        repository = DatasetRepository(session)
        return all(repository.get(NODE, name) is not None for name in names)

    return bool(await world.at_coordinator(read))
