"""One honest example of each message that a coordinator sends to a node or to a researcher.

What can be filled is filled, so that the mutants of an example touch each of
its fields; ``wire_kinds`` reads from the services which messages there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hansa.contract.envelope import JOB_TYPE, PASSPORT_ADDENDUM_TYPE
from hansa.v1 import (
    catalogue_service_pb2,
    enrolment_service_pb2,
    job_service_pb2,
    node_service_pb2,
    trust_service_pb2,
    types_pb2,
)
from hansa.v1 import node_service_pb2 as wire
from tests.support.mutants import Guide, json_inside, message_inside

TO_NODES = (node_service_pb2, enrolment_service_pb2, trust_service_pb2)
TO_RESEARCHERS = (job_service_pb2, catalogue_service_pb2, trust_service_pb2)

_WHEN = Timestamp(seconds=1_790_000_000)
_JOB_ID = "01990000-0000-7000-8000-000000000001"
_RUN_ID = "ab" * 16
_DIGEST = "sha256:" + "cd" * 32

PAYLOADS = json_inside()
BODIES = message_inside(wire.CommandBody, Guide(inside={"hansa.v1.Envelope.payload": PAYLOADS}))
GUIDE = Guide(inside={"hansa.v1.Command.body": BODIES, "hansa.v1.Envelope.payload": PAYLOADS})


def answers_of(*modules: object) -> dict[str, Descriptor]:
    """Return by name what the services of ``modules`` answer: all that comes from the coordinator."""
    return {
        method.output_type.full_name: method.output_type
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()  # type: ignore[attr-defined]
        for method in service.methods
    }


def envelope() -> types_pb2.Envelope:
    signature = types_pb2.Signature(key_id="ada", signature=b"s" * 64)
    return types_pb2.Envelope(payload_type=JOB_TYPE, payload=b'{"v":1}', signatures=[signature])


def bodies() -> Iterator[wire.CommandBody]:
    """Yield a command of each kind."""
    addendum = types_pb2.Envelope(payload_type=PASSPORT_ADDENDUM_TYPE, payload=b'{"v":1}')
    offer = wire.Offer(run_id=_RUN_ID, job_id=_JOB_ID, round=1, attempt=1, job=envelope(), addenda=[addendum])
    yield wire.CommandBody(issued_at=_WHEN, offer=offer)
    yield wire.CommandBody(issued_at=_WHEN, cancel=wire.Cancel(run_id=_RUN_ID, attempt=1))
    recorded = wire.RecordedRun(
        run_id=_RUN_ID,
        attempt=1,
        execution=1,
        state=types_pb2.Run.FAILED,
        reason="TIME_LIMIT",
        incident="X-1",
        statement=envelope(),
    )
    yield wire.CommandBody(issued_at=_WHEN, reconcile=wire.Reconcile(runs=[recorded], generation=2))
    yield wire.CommandBody(issued_at=_WHEN, drain=wire.Drain())
    yield wire.CommandBody(issued_at=_WHEN, renew_now=wire.RenewNow())
    yield wire.CommandBody(issued_at=_WHEN, trust_update=wire.TrustUpdate())


def frames() -> Iterator[wire.CoordinatorFrame]:
    """Yield a frame of each kind, and of each kind of command."""
    head = wire.Head(seq=7, hash=b"h" * 32)
    yield wire.CoordinatorFrame(
        welcome=wire.Welcome(
            epoch=3,
            nonce=b"n" * 32,
            store_uuid=_JOB_ID,
            generation=1,
            event_cursor=head,
            command_head=head,
            heartbeat_seconds=5,
        )
    )
    for body in bodies():
        command = wire.Command(epoch=3, seq=8, prev_hash=b"h" * 32, body=body.SerializeToString(deterministic=True))
        yield wire.CoordinatorFrame(command=command)
    yield wire.CoordinatorFrame(event_ack=wire.EventAck(epoch=3, upto_seq=7))
    yield wire.CoordinatorFrame(heartbeat_reply=heartbeat_reply())
    yield wire.CoordinatorFrame(fenced=wire.Fenced(by_epoch=4, reason="EPOCH_FENCED"))


def heartbeat_reply() -> wire.HeartbeatReply:
    return wire.HeartbeatReply(
        echo_monotonic_ms=1,
        wall=_WHEN,
        log_checkpoint=b"demo/coordinator\n1\n" + b"A" * 44 + b"\n",
        log_consistency_from=1,
        log_consistency=[b"c" * 32],
        witnessed_size=1,
        cosignature=b"c" * 76,
    )


def job() -> types_pb2.Job:
    run = types_pb2.Run(
        run_id=_RUN_ID,
        node="FI",
        round=1,
        attempt=1,
        execution=1,
        state=types_pb2.Run.FAILED,
        reason="TIME_LIMIT",
        incident="X-1",
        dataset="FI-lct",
        updated_at=_WHEN,
    )
    return types_pb2.Job(
        job_id=_JOB_ID,
        analysis="allele-frequency@1.0",
        submitter="ada",
        state=types_pb2.Job.COMPLETED,
        quorum=1,
        submitted_at=_WHEN,
        deadline=_WHEN,
        runs=[run],
        waits_for="nothing",
    )


def answers() -> Iterator[Message]:
    """Yield an answer of each kind that is no frame of the stream."""
    dataset = types_pb2.Dataset(dataset_id="FI-lct", node="FI", build="GRCh37", snapshot=_DIGEST)
    analysis = types_pb2.Analysis(name="allele-frequency", version="1.0", digest=_DIGEST, manifest=b'{"v":1}')
    node = types_pb2.Node(
        node="FI", state=types_pb2.Node.ACTIVE, connected=True, since=_WHEN, key_fingerprint=_DIGEST, reason="x"
    )
    yield enrolment_service_pb2.EnrolResponse(
        federation="demo",
        node="FI",
        certificate_pem="-",
        server_ca_pem="-",
        node_endpoint="127.0.0.1:1",
        key_fingerprint=_DIGEST,
        trust_root=b"{}",
    )
    yield wire.UploadSummaryResponse()
    yield wire.RenewCertificateResponse(certificate_pem="-")
    yield trust_service_pb2.GetMetadataResponse(chunk=b"x")
    yield trust_service_pb2.GetTargetResponse(chunk=b"x")
    for kind in ("SubmitJob", "GetJob", "WatchJob", "CancelJob"):
        yield getattr(job_service_pb2, f"{kind}Response")(job=job())
    yield job_service_pb2.ListJobsResponse(jobs=[job(), job()], next_page_token="2")
    yield job_service_pb2.GetResultResponse(job=job(), result=b"{}")
    yield job_service_pb2.GetEvidenceResponse(name="result.json", chunk=b"{}")
    yield catalogue_service_pb2.ListAnalysesResponse(analyses=[analysis], next_page_token="2")
    yield catalogue_service_pb2.GetAnalysisResponse(analysis=analysis)
    yield catalogue_service_pb2.ListDatasetsResponse(datasets=[dataset], next_page_token="2")
    yield catalogue_service_pb2.ListNodesResponse(nodes=[node], next_page_token="2")
