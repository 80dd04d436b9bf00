"""What people, operators and time do in a federation: each journey reaches some crash points and checks its outcome.

A journey knows nothing of crashes. It insists, as its people do, and must come
to the same end whoever died meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import grpc
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.api.frames import envelope_message
from coordinator.domain.membership import NodeState
from coordinator.domain.records import JobRecord
from coordinator.store.audit_check import verify_log
from coordinator.store.catalogue import DatasetRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository
from coordinator.store.sessions import SessionRepository
from coordinator.store.summaries import SummaryRepository
from hansa.contract import envelope
from hansa.contract.approval import JobApproval, StandingApproval
from hansa.contract.decision import ReleaseDecision
from hansa.contract.digests import digest
from hansa.contract.envelope import APPROVAL_TYPE, DECISION_TYPE, to_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import run_id
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.states import JOB_TERMINAL, JobState, RunState
from hansa.runtime.clock import utc_now
from hansa.sdk.evidence import gather
from hansa.sdk.verification import Verifier, verify_evidence
from hansa.v1 import admin_service_pb2 as admin
from hansa.v1 import catalogue_service_pb2
from hansa.v1 import job_service_pb2 as wire
from hansa.v1 import node_service_pb2 as node_wire
from hansa.v1.job_service_pb2_grpc import JobServiceStub
from hansa.v1.node_service_pb2_grpc import NodeServiceStub
from node_agent.config import StateFolder
from node_agent.keys.credential import load_credential
from node_agent.local_api.client import AgentClient as LocalClient
from node_agent.store.models import DatasetRow, EventRow, RunRow, SummaryRow, WitnessRow
from node_agent.store.outbox import command_cursor, event_head, is_reconciled, store_row
from tests.support.agent import SNAPSHOT, make_snapshot
from tests.support.crash_world import DATASET, NODE, CrashWorld, Side
from tests.support.live_coordinator import AUDITOR, CALL_SECONDS, FEDERATION, OLGA, OSCAR, RITA, NodeKey
from tests.support.restored_bench import raise_generation
from tests.support.trust_world import PROJECT

VARIANT: Final = "15:28365618:A:G"
HOLDER: Final = "holder-fi"
CHECKER: Final = "checker-fi"
Journey = Callable[[CrashWorld], Awaitable[None]]


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


async def verified(world: CrashWorld, job_id: str) -> None:
    """Fetch the evidence as its researcher, until the witnesses have cosigned, and believe nobody."""

    async def proves() -> bool:
        files = await _evidence_of(world, job_id)
        found = verify_evidence(files, Verifier(root=world.trust.root), job_id)
        assert all(step.pending for step in found.failed), found.failed
        return not found.failed

    await world.until(proves, "the evidence with its logs")


async def _evidence_of(world: CrashWorld, job_id: str) -> dict[str, bytes]:
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


async def prepare(world: CrashWorld) -> None:
    """Offer the dataset, and have the data holder approve."""
    await world.until(partial(_trusted, world), "the node has its trust")
    await add_dataset(world, DATASET)
    await approve_standing(world)


async def _trusted(world: CrashWorld) -> bool:
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
    await world.until(partial(_offered, world, {name}), f"{name} is offered")


async def _offered(world: CrashWorld, names: set[str]) -> bool:
    def read(session: Session) -> bool:
        repository = DatasetRepository(session)
        return all(repository.get(NODE, name) is not None for name in names)

    return bool(await world.at_coordinator(read))


# --- journeys of jobs -----------------------------------------------------------------


async def a_held_job(world: CrashWorld) -> None:
    """A job that runs for longer than one beat."""
    spec = job_spec(world)
    with _held(world):
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


@contextmanager
def _held(world: CrashWorld) -> Iterator[None]:
    world.worker.runner.go.clear()
    try:
        yield
    finally:
        world.worker.runner.go.set()


async def cancelled(world: CrashWorld) -> None:
    """A job that its researcher cancels while it runs."""
    spec = job_spec(world)
    with _held(world):
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


async def nothing_left(world: CrashWorld, name: str) -> None:
    """Nothing of the run was released, or waits to be."""
    assert await world.at_node(lambda session: session.get(SummaryRow, name)) is None
    assert await world.at_coordinator(lambda session: SummaryRepository(session).content(name)) is None


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


# --- what operators do ----------------------------------------------------------------------


async def datasets(world: CrashWorld) -> None:
    """A second dataset comes and goes again; it has the snapshot of the first."""
    name = f"FI-{uuid4().hex[:8]}"
    await add_dataset(world, name)
    await world.local("remove_dataset", name, done=frozenset({Reason.DATASET_UNKNOWN}))

    async def gone() -> bool:
        return not await _offered(world, {name})

    await world.until(gone, "the dataset is offered no more")
    await a_job(world)


async def publication(world: CrashWorld) -> None:
    """The national operators publish another directory; the next job is of that one."""
    world.trust.change()
    await world.insist(world.live.publish)
    await world.until(partial(_trusted, world), "the node has the new directory")
    await a_job(world)


async def renewal(world: CrashWorld) -> None:
    """The node renews its certificate."""
    before = world.serial()
    world.agent._wishes.renew.set()

    async def renewed() -> bool:
        if world.serial() == before:
            # An operator's wish is not kept by an agent that died.
            world.agent._wishes.renew.set()
            return False
        return await _is_connected(world)

    await world.until(renewed, "a new certificate")
    await a_job(world)
    assert not (world.state.keys / "pending.key").exists()


async def _is_connected(world: CrashWorld) -> bool:
    listed = await world.live.catalogue("ListNodes", catalogue_service_pb2.ListNodesRequest())
    return any(node.connected for node in listed.nodes if node.node == NODE)


async def _two(world: CrashWorld, method: str, request: Any) -> Any:
    """Have two operators make the same call."""
    await world.insist(lambda: world.live.admin(method, request, OLGA), done=frozenset({Reason.PENDING_SECOND}))
    second = type(request)()
    second.CopyFrom(request)
    second.request_id = uuid4().hex
    return await world.insist(lambda: world.live.admin(method, second, OSCAR))


async def _one(world: CrashWorld, method: str, request: Any) -> Any:
    return await world.insist(lambda: world.live.admin(method, request, OLGA))


async def membership(world: CrashWorld) -> None:
    """A node is invited, enrols, is confirmed, suspended, resumed and revoked; a proposal is withdrawn."""
    node = f"N{uuid4().hex[:8].upper()}"
    answer = await _two(world, "InviteNode", admin.InviteNodeRequest(request_id=uuid4().hex, node=node))
    token = world.token_of(node, answer)
    key = NodeKey()
    await world.insist(lambda: world.live.enrol(token, key))
    confirm = admin.ConfirmNodeRequest(request_id=uuid4().hex, node=node, key_fingerprint=key.fingerprint)
    await _one(world, "ConfirmNode", confirm)
    await _one(world, "SuspendNode", admin.SuspendNodeRequest(request_id=uuid4().hex, node=node, reason="a while"))
    asked = admin.ResumeNodeRequest(request_id=uuid4().hex, node=node)
    await world.insist(lambda: world.live.admin("ResumeNode", asked, OLGA), done=frozenset({Reason.PENDING_SECOND}))
    await _withdraw_proposals(world)
    await _two(world, "ResumeNode", admin.ResumeNodeRequest(request_id=uuid4().hex, node=node))
    await _two(world, "RevokeNode", admin.RevokeNodeRequest(request_id=uuid4().hex, node=node, reason="over"))
    standing = await world.at_coordinator(lambda session: SessionRepository(session).standing(node))
    assert standing.state is NodeState.REVOKED
    done = await _acts(world, node)
    assert done == sorted(set(done), key=done.index), "nothing was done twice"


async def _withdraw_proposals(world: CrashWorld) -> None:
    listed = await world.insist(lambda: world.live.admin("ListProposals", admin.ListProposalsRequest()))
    assert listed is not None
    for one in listed.proposals:
        request = admin.WithdrawProposalRequest(request_id=uuid4().hex, proposal_id=one.proposal_id)
        await _one(world, "WithdrawProposal", request)


async def _acts(world: CrashWorld, subject: str) -> list[str]:
    """Return what the coordinator's log says that was done about a subject, once it was done."""
    found = await world.insist(lambda: world.live.admin("ListAudit", admin.ListAuditRequest(page_size=100), AUDITOR))
    assert found is not None
    acts = [one.action for one in found.entries if one.subject.split()[0].rstrip(":") == subject]
    return [act for act in acts if act.startswith("node_")]


async def a_quarantine(world: CrashWorld) -> None:
    """The node uploads other bytes than it has signed; it is set apart, and two operators let it come back."""
    spec = job_spec(world)
    name = await submit(world, spec)
    await released_once(world, spec)
    content = b"other bytes than those that were signed"
    await world.insist(
        partial(_upload, world, name, content), done=frozenset({Reason.SUMMARY_CONFLICT, Reason.NODE_QUARANTINED})
    )

    async def apart() -> bool:
        standing = await world.at_coordinator(lambda session: SessionRepository(session).standing(NODE))
        return bool(standing.state is NodeState.QUARANTINED)

    if not await apart():
        # The coordinator died of it; a node that lies does so again.
        await world.insist(
            partial(_upload, world, name, content), done=frozenset({Reason.SUMMARY_CONFLICT, Reason.NODE_QUARANTINED})
        )
    assert await apart()
    await _two(world, "ResumeNode", admin.ResumeNodeRequest(request_id=uuid4().hex, node=NODE))
    await a_job(world)


async def a_restored_node(world: CrashWorld) -> None:
    """The node's store was restored from a backup; two operators have it reconciled, and it goes on."""
    await a_job(world)
    await world.at_node(raise_generation)
    world.restart(world.node_side)

    async def apart() -> bool:
        standing = await world.at_coordinator(lambda session: SessionRepository(session).standing(NODE))
        return bool(standing.state is NodeState.QUARANTINED)

    await world.until(apart, "the restored node is set apart")
    await _two(world, "ReconcileNode", admin.ReconcileNodeRequest(request_id=uuid4().hex, node=NODE))

    async def reconciled() -> bool:
        return bool(await world.at_node(is_reconciled)) and await _is_connected(world)

    await world.until(reconciled, "the node knows again what it has released")
    await a_job(world)


async def _upload(world: CrashWorld, name: str, content: bytes) -> None:
    own = load_credential(world.state)
    credentials = grpc.ssl_channel_credentials(world.live.root, own.key_pem, own.certificate_pem)
    header = node_wire.UploadSummaryRequest.Header(
        run_id=name, attempt=1, execution=1, digest=hashlib.sha256(content).digest(), size=len(content)
    )
    parts = [node_wire.UploadSummaryRequest(header=header), node_wire.UploadSummaryRequest(chunk=content)]
    stub = NodeServiceStub(world.live.channel("node", credentials))
    await stub.UploadSummary(iter(parts), timeout=CALL_SECONDS)


async def coordinator_restarts(world: CrashWorld) -> None:
    """The coordinator is stopped and started while a job runs."""
    await _restart(world, world.coordinator_side)


async def node_restarts(world: CrashWorld) -> None:
    """The agent is stopped and started while a job runs; it knows nothing of its coordinator any more."""
    await world.at_node(_forget_coordinator)
    await _restart(world, world.node_side)


def _forget_coordinator(session: Session) -> None:
    store_row(session).coordinator_uuid = ""


async def _restart(world: CrashWorld, side: Side) -> None:
    spec = job_spec(world)
    with _held(world):
        name = await submit(world, spec)
        await run_is(world, name, RunState.RUNNING)
        starts = side.starts
        world.restart(side)

        async def again() -> bool:
            return side.starts > starts and await _is_connected(world)

        await world.until(again, "both are there again")
    await released_once(world, spec)


async def a_checkpoint(world: CrashWorld) -> None:
    """An auditor asks for the log's newest checkpoint, of which no heartbeat has told yet."""
    async with _grown_unheard(world):
        await world.insist(lambda: world.live.admin("GetCheckpoint", admin.GetCheckpointRequest(), AUDITOR))
    await a_job(world)


async def evidence(world: CrashWorld) -> None:
    """A researcher fetches the evidence of a job under a checkpoint of which no heartbeat has told yet."""
    spec = job_spec(world)
    await submit(world, spec)
    await released_once(world, spec)
    async with _grown_unheard(world):
        await world.insist(lambda: _evidence_of(world, spec.job_id))
    await a_job(world)


@asynccontextmanager
async def _grown_unheard(world: CrashWorld) -> AsyncIterator[None]:
    """Have the coordinator's log grow while no node is there: who asks for a checkpoint now has it made."""
    await world.node_side.take_down()

    async def gone() -> bool:
        return not await _is_connected(world)

    await world.until(gone, "the coordinator knows that the node is away")
    asked = admin.InviteNodeRequest(request_id=uuid4().hex, node=f"N{uuid4().hex[:8].upper()}")
    await world.insist(lambda: world.live.admin("InviteNode", asked, OLGA), done=frozenset({Reason.PENDING_SECOND}))
    yield
    world.node_side.start()
    await _withdraw_proposals(world)


async def an_erasure(world: CrashWorld) -> None:
    """The node's operator has a person's name erased from its log, which still verifies."""
    done = frozenset({Reason.LOG_ENTRY_UNKNOWN})
    await world.local("erase_audit", index=None, person=RITA, by="operator-fi", done=done)
    await a_job(world)


async def a_fork(world: CrashWorld) -> None:
    """The node was shown another log of the coordinator's; its operator takes it over."""

    def forked(session: Session) -> None:
        row = session.get_one(WitnessRow, 1)
        row.conflict, row.conflict_at = row.note, utc_now()

    await world.at_node(forked)
    starts = world.node_side.starts
    world.restart(world.node_side)

    async def again() -> bool:
        return world.node_side.starts > starts

    await world.until(again, "the agent is there again")
    words = {"reason": "they told us", "by": "operator-fi"}
    await world.local("accept_coordinator_log", **words, done=frozenset({Reason.NODE_STATE_CONFLICT}))
    await a_job(world)


async def misfits(world: CrashWorld) -> None:
    """What the coordinator says does not fit, and its repository is refused: both are written down."""
    # Called where the link and the keeper call it: an honest coordinator does not bring them to it.
    for note in (
        lambda: world.agent._link._note(Reason.PROTOCOL_VIOLATION),
        lambda: world.agent._keeper._refused(HansaError(Reason.TRUST_INVALID), utc_now()),
    ):
        await _unless_it_dies(world, note)
    await a_job(world)


async def _unless_it_dies(world: CrashWorld, act: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(act())
    died = asyncio.ensure_future(world.node_side.ended.wait())
    await asyncio.wait({task, died}, return_when=asyncio.FIRST_COMPLETED)
    for one in (task, died):
        one.cancel()
    await asyncio.gather(task, died, return_exceptions=True)


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
