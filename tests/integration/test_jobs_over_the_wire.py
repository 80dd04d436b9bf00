"""Jobs over real TLS: a researcher, a coordinator with its listeners, scripted nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from coordinator.api.frames import envelope_message
from hansa.contract import envelope
from hansa.contract.errors import Reason
from hansa.contract.limits import CHUNK_BYTES
from hansa.sdk.evidence import gather
from hansa.sdk.verification import Verifier, verify_evidence
from hansa.v1 import admin_service_pb2, catalogue_service_pb2, job_service_pb2, types_pb2
from hansa.v1 import node_service_pb2 as wire
from hansa.v1.job_service_pb2_grpc import JobServiceStub
from tests.support.job_world import BUNDLE_DIGEST, VARIANT, released, snapshot
from tests.support.live_coordinator import (
    AUDITOR,
    CALL_SECONDS,
    OLGA,
    RITA,
    LiveCoordinator,
    live_coordinator,
    reason_of,
)
from tests.support.scripted_node import NodeStore, WireNode, inventory, release, report, run_at
from tests.support.statements import make_statement
from tests.support.trust_world import PROJECT

State = types_pb2.Job.State


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "state") as coordinator:
        yield coordinator


async def joined(live: LiveCoordinator, name: str) -> WireNode:
    """Return a node that has joined, is attached and has announced its dataset."""
    node = WireNode(live.node(await live.join(name)), NodeStore(uuid=name))
    await node.attach()
    await node.tell(inventory((f"{name}-aisnp", name, "GRCh37", snapshot(name))))
    return node


def submission(live: LiveCoordinator, *nodes: str, minutes: float = 30, **changes: Any) -> Any:
    now = live.clock()
    payload = {
        "v": 1,
        "federation": "demo",
        "directory_version": live.trust.directory.version,
        "job_id": str(uuid4()),
        "nonce": uuid4().hex,
        "submitter": RITA,
        "project": PROJECT,
        "analysis": {"name": "allele-frequency", "version": "1.0", "digest": BUNDLE_DIGEST},
        "parameters": {"variants": VARIANT},
        "datasets": [{"node": n, "dataset": f"{n}-aisnp", "snapshot": snapshot(n)} for n in nodes],
        "quorum": len(nodes),
        "not_before": now.isoformat(),
        "not_after": (now + timedelta(minutes=minutes)).isoformat(),
        **changes,
    }
    signed = envelope.sign(envelope.JOB_TYPE, json.dumps(payload).encode(), key_id=RITA, key=live.keys[RITA])
    return job_service_pb2.SubmitJobRequest(request_id=uuid4().hex, job=envelope_message(signed))


async def call(live: LiveCoordinator, method: str, request: Any, person: str = RITA) -> Any:
    stub = getattr(JobServiceStub(live.people), method)
    return await stub(request, metadata=live.bearer(person), timeout=CALL_SECONDS)


async def reason(pending: Any) -> Reason | None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pending
    return reason_of(caught.value)


async def is_connected(live: LiveCoordinator, name: str) -> bool:
    listed = await live.catalogue("ListNodes", catalogue_service_pb2.ListNodesRequest())
    return any(node.connected for node in listed.nodes if node.node == name)


async def until_disconnected(live: LiveCoordinator, name: str) -> None:
    async with asyncio.timeout(20):
        while await is_connected(live, name):  # noqa: ASYNC110 - another process's state, in general
            await asyncio.sleep(0.02)


async def evidence_proves(live: LiveCoordinator, job_id: str, result: bytes) -> None:
    """Fetch the evidence as its researcher, and make the same result of it."""
    asked = job_service_pb2.GetEvidenceRequest(job_id=job_id)
    evidence = JobServiceStub(live.people).GetEvidence(asked, metadata=live.bearer(RITA), timeout=CALL_SECONDS)
    files = await gather((part.name, part.chunk) async for part in evidence)
    found = verify_evidence(files, Verifier(root=live.trust.root), job_id)
    assert [(step.name, step.pending) for step in found.failed] == [("audit logs", True)], "nobody witnesses here"
    assert found.result == result


async def test_a_job_goes_from_a_researcher_over_two_nodes_to_its_result(live: LiveCoordinator) -> None:
    nodes = {name: await joined(live, name) for name in ("FI", "ES")}
    job = (await call(live, "SubmitJob", submission(live, "FI", "ES"))).job
    assert (job.state, job.submitter, job.analysis) == (State.PENDING, RITA, "allele-frequency@1.0")
    watch = JobServiceStub(live.people).WatchJob(
        job_service_pb2.WatchJobRequest(job_id=job.job_id), metadata=live.bearer(RITA), timeout=CALL_SECONDS
    )
    watched = aiter(watch)
    assert (await anext(watched)).job.state == State.PENDING
    get_result = job_service_pb2.GetResultRequest(job_id=job.job_id)
    assert await reason(call(live, "GetResult", get_result)) is Reason.JOB_NOT_ENDED

    contents = {"FI": released(99, 198, 40), "ES": released(107, 214, 60)}
    for name, node in nodes.items():
        offer = (await node.take_command()).offer
        run, payload = offer.run_id, offer.job.payload
        assert run == run_at(job.job_id, name)
        statement = make_statement(payload, name, contents[name], key=live.keys[name])
        await node.tell(
            report(run, "ACCEPTED"),
            report(run, "RUNNING", execution=1),
            release(statement, contents[name]),
            report(run, "RELEASED", execution=1),
        )
        await node.upload(run, contents[name])
        await node.upload(run, contents[name])
        assert await reason(node.upload(run, released(ac=1))) is Reason.SUMMARY_CONFLICT

    shown = [answer.job async for answer in watched]
    assert shown[-1].state == State.COMPLETED
    assert shown[-1].waits_for == "2 of 2 nodes answered; the quorum was 2"
    answer = await call(live, "GetResult", get_result)
    (row,) = json.loads(answer.result)["variants"]
    assert (row["pooled"]["ac"], row["pooled"]["an"]) == (100, 412)
    cancel = job_service_pb2.CancelJobRequest(request_id="c", job_id=job.job_id)
    assert await reason(call(live, "CancelJob", cancel)) is Reason.JOB_ENDED

    await evidence_proves(live, job.job_id, answer.result)


async def test_a_repeated_submission_gets_the_first_answer_and_other_bytes_none(live: LiveCoordinator) -> None:
    await joined(live, "FI")
    request = submission(live, "FI")
    first = (await call(live, "SubmitJob", request)).job
    request.request_id = "another"
    assert (await call(live, "SubmitJob", request)).job == first
    other = submission(live, "FI", job_id=first.job_id)
    assert await reason(call(live, "SubmitJob", other)) is Reason.IDEMPOTENCY_MISMATCH
    listed = await call(live, "ListJobs", job_service_pb2.ListJobsRequest(), OLGA)
    assert [job.job_id for job in listed.jobs] == [first.job_id]
    assert await reason(call(live, "SubmitJob", submission(live, "FI"), OLGA)) is Reason.PERMISSION_DENIED
    two = submission(live, "FI")
    two.job.signatures.append(two.job.signatures[0])
    assert await reason(call(live, "SubmitJob", two)) is Reason.ENVELOPE_INVALID


async def test_a_cancelled_job_ends_when_the_node_has_confirmed_it(live: LiveCoordinator) -> None:
    node = await joined(live, "FI")
    job = (await call(live, "SubmitJob", submission(live, "FI"))).job
    run = (await node.take_command()).offer.run_id
    cancel = job_service_pb2.CancelJobRequest(request_id="c", job_id=job.job_id)
    assert (await call(live, "CancelJob", cancel)).job.state == State.CANCELLING
    assert (await node.take_command()).cancel.run_id == run
    await node.tell(report(run, "CANCELLED", reason="CANCELLED"))
    got = await call(live, "GetJob", job_service_pb2.GetJobRequest(job_id=job.job_id))
    assert got.job.state == State.CANCELLED


async def test_the_deadline_ends_a_job_that_nobody_touches(live: LiveCoordinator) -> None:
    await joined(live, "FI")
    job = (await call(live, "SubmitJob", submission(live, "FI", minutes=0.01))).job
    watch = JobServiceStub(live.people).WatchJob(
        job_service_pb2.WatchJobRequest(job_id=job.job_id), metadata=live.bearer(RITA), timeout=CALL_SECONDS
    )
    assert [answer.job.state async for answer in watch][-1] == State.EXPIRED


async def test_a_second_session_of_a_node_fences_the_first(live: LiveCoordinator) -> None:
    key = await live.join("FI")
    first = WireNode(live.node(key), NodeStore())
    await first.attach()
    await first.heartbeat()
    second = WireNode(live.node(key), first.store)
    await second.attach()
    assert (await first.receive("fenced")).fenced.by_epoch == 2
    assert await first.ended() is Reason.EPOCH_FENCED
    await second.heartbeat()
    assert await is_connected(live, "FI")


@pytest.mark.parametrize("how", ["hang_up", "vanish"])
async def test_a_node_that_goes_is_seen_to_be_gone_and_finds_its_commands_when_it_comes_back(
    live: LiveCoordinator, how: str
) -> None:
    key = await live.join("FI")
    node = WireNode(live.node(key), NodeStore())
    await node.attach()
    await node.tell(inventory(("FI-aisnp", "FI", "GRCh37", snapshot("FI"))))
    if how == "hang_up":
        await node.hang_up()
    else:
        node.vanish()
    await until_disconnected(live, "FI")
    job = (await call(live, "SubmitJob", submission(live, "FI"))).job
    again = WireNode(live.node(key), node.store)
    welcome = await again.attach()
    assert (welcome.epoch, welcome.event_cursor.seq, welcome.command_head.seq) == (2, 1, 1)
    assert (await again.take_command()).offer.job_id == job.job_id


async def test_a_suspended_node_is_cut_off_at_once_and_may_come_back_when_resumed(live: LiveCoordinator) -> None:
    key = await live.join("FI")
    node = WireNode(live.node(key), NodeStore())
    await node.attach()
    await node.heartbeat()
    suspend = admin_service_pb2.SuspendNodeRequest(request_id="s", node="FI", reason="maintenance")
    await live.admin("SuspendNode", suspend)
    assert await node.ended() is Reason.NODE_SUSPENDED
    refused = WireNode(live.node(key), node.store)
    assert await refused.ended() is Reason.NODE_SUSPENDED
    await live.two("ResumeNode", admin_service_pb2.ResumeNodeRequest(request_id="r", node="FI"))
    again = WireNode(live.node(key), node.store)
    await again.attach()
    await again.heartbeat()


async def test_frames_that_cannot_be_read_end_the_session(live: LiveCoordinator) -> None:
    key = await live.join("FI")
    body = wire.EventBody(run_reported=wire.RunReported(run_id="x", attempt=1)).SerializeToString()
    for frame in (
        wire.NodeFrame(),
        wire.NodeFrame(event=wire.Event(epoch=1, seq=1, body=b"\xff\xff")),
        wire.NodeFrame(event=wire.Event(epoch=1, seq=1, body=b"")),
        wire.NodeFrame(event=wire.Event(epoch=1, seq=1, body=body)),
    ):
        node = WireNode(live.node(key), NodeStore())
        await node.attach()
        await node.heartbeat()
        await node.send(frame)
        # What is no id is refused before the session looks at it.
        assert await node.ended() in {Reason.PROTOCOL_VIOLATION, Reason.MALFORMED}


async def test_an_upload_that_is_not_what_was_announced_is_refused(live: LiveCoordinator) -> None:
    nodes = {name: await joined(live, name) for name in ("FI", "ES")}
    job = (await call(live, "SubmitJob", submission(live, "FI", "ES"))).job
    run, node = run_at(job.job_id, "FI"), nodes["FI"]
    whole = released()
    assert await reason(node.upload(run, whole, digest=b"d" * 32)) is Reason.SUMMARY_CORRUPT
    assert await reason(nodes["ES"].upload(run, whole)) is Reason.RUN_UNKNOWN
    assert await reason(node.upload("f" * 32, whole)) is Reason.RUN_UNKNOWN
    assert await reason(node.upload(run, b" " * (2 * CHUNK_BYTES), chunk_bytes=CHUNK_BYTES + 1)) in {
        Reason.PROTOCOL_VIOLATION,
        Reason.MALFORMED,
    }

    async def parts(*messages: wire.UploadSummaryRequest) -> AsyncIterator[wire.UploadSummaryRequest]:
        for message in messages:
            yield message

    headless = node.stub.UploadSummary(parts(wire.UploadSummaryRequest(chunk=b"x")), timeout=CALL_SECONDS)
    assert await reason(headless) is Reason.PROTOCOL_VIOLATION
    header = wire.UploadSummaryRequest.Header(run_id=run, attempt=1, digest=b"d" * 32, size=1 << 40)
    huge = node.stub.UploadSummary(parts(wire.UploadSummaryRequest(header=header)), timeout=CALL_SECONDS)
    assert await reason(huge) is Reason.SUMMARY_CORRUPT


async def test_who_leaves_the_directory_watches_no_more(live: LiveCoordinator) -> None:
    await joined(live, "FI")
    job = (await call(live, "SubmitJob", submission(live, "FI"))).job
    watch = JobServiceStub(live.people).WatchJob(
        job_service_pb2.WatchJobRequest(job_id=job.job_id), metadata=live.bearer(RITA), timeout=CALL_SECONDS
    )
    watched = aiter(watch)
    assert (await anext(watched)).job.state == State.PENDING
    (project,) = live.trust.directory.projects
    live.trust.now = live.clock()
    live.trust.change(
        people=tuple(person for person in live.trust.directory.people if person.name != RITA),
        projects=(project.model_copy(update={"researchers": ("bob",)}),),
    )
    await live.publish()
    assert await reason(anext(watched)) is Reason.UNAUTHENTICATED


async def test_auditors_see_all_jobs_and_no_result(live: LiveCoordinator) -> None:
    await joined(live, "FI")
    job = (await call(live, "SubmitJob", submission(live, "FI"))).job
    seen = await call(live, "GetJob", job_service_pb2.GetJobRequest(job_id=job.job_id), AUDITOR)
    assert seen.job.job_id == job.job_id
    listed = await call(live, "ListJobs", job_service_pb2.ListJobsRequest(), AUDITOR)
    assert [one.job_id for one in listed.jobs] == [job.job_id]
    result = call(live, "GetResult", job_service_pb2.GetResultRequest(job_id=job.job_id), AUDITOR)
    assert await reason(result) is Reason.PERMISSION_DENIED
    other = call(live, "GetJob", job_service_pb2.GetJobRequest(job_id=job.job_id), "rev1")
    assert await reason(other) is Reason.PERMISSION_DENIED


async def test_a_job_that_names_an_older_directory_has_to_be_signed_again(live: LiveCoordinator) -> None:
    await joined(live, "FI")
    old = submission(live, "FI")
    live.trust.now = live.clock()
    live.trust.change(witnesses=())
    await live.publish()
    assert await reason(call(live, "SubmitJob", old)) is Reason.DIRECTORY_CHANGED
    await call(live, "SubmitJob", submission(live, "FI"))
