"""What operators and auditors do, and what befalls whole services: the journeys beside those of jobs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
from sqlalchemy.orm import Session

from coordinator.domain.membership import NodeState
from coordinator.store.sessions import SessionRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.states import RunState
from hansa.runtime.clock import utc_now
from hansa.v1 import admin_service_pb2 as admin
from hansa.v1 import catalogue_service_pb2
from hansa.v1 import node_service_pb2 as node_wire
from hansa.v1.node_service_pb2_grpc import NodeServiceStub
from node_agent.keys.credential import load_credential
from node_agent.store.models import WitnessRow
from node_agent.store.outbox import is_reconciled, store_row
from tests.support.crash_steps import (
    a_job,
    add_dataset,
    evidence_of,
    held,
    job_spec,
    offered,
    released_once,
    run_is,
    submit,
    trusted,
)
from tests.support.crash_world import NODE, CrashWorld, Side
from tests.support.live_coordinator import AUDITOR, CALL_SECONDS, OLGA, OSCAR, RITA, NodeKey
from tests.support.restored_bench import raise_generation


async def datasets(world: CrashWorld) -> None:
    """A second dataset comes and goes again; it has the snapshot of the first."""
    name = f"FI-{uuid4().hex[:8]}"
    await add_dataset(world, name)
    await world.local("remove_dataset", name, done=frozenset({Reason.DATASET_UNKNOWN}))

    async def gone() -> bool:
        return not await offered(world, {name})

    await world.until(gone, "the dataset is offered no more")
    await a_job(world)


async def publication(world: CrashWorld) -> None:
    """The national operators publish another directory; the next job is of that one."""
    world.trust.change()
    await world.insist(world.live.publish)
    await world.until(partial(trusted, world), "the node has the new directory")
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
    with held(world):
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
        await world.insist(lambda: evidence_of(world, spec.job_id))
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
