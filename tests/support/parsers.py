"""Everything that reads a stranger's bytes, each with examples to begin from: for property tests and for fuzzing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.api.frames import node_frame, signed_of
from coordinator.api.tokens import claimed_name
from hansa.contract.approval import JobApproval, StandingApproval, parse_approval
from hansa.contract.decision import ReleaseDecision, parse_decision
from hansa.contract.digests import bundle_listing, digest
from hansa.contract.directory import Directory, directory_bytes, parse_directory
from hansa.contract.enrolment import parse_token
from hansa.contract.envelope import JOB_TYPE, from_json, sign, to_json
from hansa.contract.errors import HansaError
from hansa.contract.job import AnalysisRef, DatasetRef, JobSpec, parse_job
from hansa.contract.listing import parse_listing
from hansa.contract.manifest import check_parameters, parse_manifest
from hansa.contract.notes import Checkpoint, cosign, parse_line, parse_note, sign_checkpoint
from hansa.contract.passport import PassportAddendum, parse_addendum
from hansa.contract.raw_keys import key_text
from hansa.contract.review import Authorship, Vote, parse_authorship, parse_vote
from hansa.contract.statement import parse_statement
from hansa.contract.summary import parse_summary
from hansa.runtime.reading import read_message
from hansa.sdk.result import parse_result
from hansa.v1 import admin_service_pb2, enrolment_service_pb2, job_service_pb2, types_pb2
from hansa.v1 import node_service_pb2 as wire
from tests.support.corpus import entries_of, made
from tests.support.job_world import MANIFEST, released

MOMENT = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
ZERO = "sha256:" + "0" * 64
UUID = "0192f0c1-0000-7000-8000-000000000000"
ANALYSIS = AnalysisRef(name="allele-frequency", version="1.0", digest=ZERO)
SPEC = parse_manifest(json.dumps(MANIFEST).encode())
# No word of a refusal is longer, however long what was refused.
MOST_WORDS = 1000


@dataclass(frozen=True)
class Parser:
    """Something that reads bytes: it returns, or raises ``HansaError``. ``seeds`` are bytes that it takes."""

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


def feed(parser: Parser, data: bytes) -> HansaError | None:
    """Let ``parser`` read ``data``; return its refusal, which must be fit for a caller.

    Whatever else it raises comes out.
    """
    try:
        parser.read(data)
    except HansaError as error:
        words = f"{error.public}{error.field}"
        assert words.isprintable(), ascii(words)
        assert len(words) <= MOST_WORDS, f"{len(words)} characters"
        assert "Traceback" not in words
        assert words.encode("utf-8")
        return error
    return None


def frame_of_a_node(data: bytes) -> object:
    """Read a frame as the coordinator does."""
    return node_frame(read_message(wire.NodeFrame, data))


def event_of_a_node(data: bytes) -> object:
    """Read an event's body as the coordinator does."""
    return node_frame(wire.NodeFrame(event=wire.Event(epoch=1, seq=1, prev_hash=bytes(32), body=data)))


def submission(data: bytes) -> object:
    """Read a submission as the coordinator does before it looks anything up."""
    return parse_job(signed_of(read_message(job_service_pb2.SubmitJobRequest, data).job).payload)


def manifest_and_parameters(data: bytes) -> object:
    """Read a manifest, and a value for each parameter that it declares."""
    manifest = parse_manifest(data)
    return [check_parameters(manifest, {name: "rs1"}) for name in list(manifest.parameters)[:3]]


def text_of(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """Return a reader of bytes for one of texts."""
    return lambda data: read(data.decode("utf-8", errors="replace"))


def job() -> JobSpec:
    """Return a job with every field filled."""
    return JobSpec(
        federation="demo",
        directory_version=1,
        job_id=UUID,
        nonce="0" * 32,
        submitter="ada",
        project="lactose",
        purpose="to know",
        analysis=ANALYSIS,
        parameters={"variants": "rs1"},
        datasets=(DatasetRef(node="FI", dataset="FI-lct", snapshot=ZERO),),
        quorum=1,
        recipient_key=key_text(KEY.public_key()),
        passports={"FI": ZERO},
        not_before=MOMENT,
        not_after=MOMENT,
    )


def _directory() -> Directory:
    return Directory.model_validate(
        {
            "federation": "demo",
            "version": 1,
            "coordinator_log_key": key_text(KEY.public_key()),
            "people": [
                {
                    "name": "ada",
                    "organisation": "uni-a",
                    "signing_key": key_text(Ed25519PrivateKey.from_private_bytes(b"\2" * 32).public_key()),
                    "roles": ["researcher"],
                }
            ],
        }
    )


def _statement() -> bytes:
    release: dict[str, Any] = {
        "federation": "demo", "node": "FI", "job_id": UUID, "job_digest": ZERO, "round": 1, "run_id": "0" * 32,
        "attempt": 1, "execution": 1, "analysis": ANALYSIS.model_dump(), "dataset": "FI-lct", "snapshot": ZERO,
        "policy_digest": ZERO, "directory_version": 1, "release_class": "auto",
        "checks": [{"rule": "min-cohort", "outcome": "pass"}], "approvals": [ZERO],
        "deciders": [{"by": "disclosure-rules"}], "released_at": MOMENT.isoformat(),
        "log": {"index": 0, "leaf_hash": "0" * 64},
    }  # fmt: skip
    whole = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "summary", "digest": {"sha256": "0" * 64}}],
        "predicateType": "urn:hansa:release:v1",
        "predicate": release,
    }
    return json.dumps(whole).encode()


def _notes() -> list[bytes]:
    checkpoint = Checkpoint("demo/coordinator", 3, bytes(32))
    line = cosign(checkpoint, name="demo/node/FI", key=KEY, seconds=1)
    return [sign_checkpoint(checkpoint, KEY).plus(line).to_bytes(), line.to_bytes()]


def _frames() -> list[bytes]:
    found = [
        wire.NodeFrame(hello=wire.Hello(protocol=1, store_uuid="s", generation=1, capabilities=["a"])),
        wire.NodeFrame(
            head_proof=wire.HeadProof(epoch=1, nonce=bytes(32), event_head=wire.Head(seq=1, hash=bytes(32)))
        ),
        wire.NodeFrame(event=wire.Event(epoch=1, seq=1, prev_hash=bytes(32), body=_events()[0])),
        wire.NodeFrame(heartbeat=wire.Heartbeat(epoch=1, log_checkpoint=_notes()[0], log_consistency=[bytes(32)])),
    ]
    return [frame.SerializeToString() for frame in found] + of_corpus("frames", "raw")


def _events() -> list[bytes]:
    envelope = types_pb2.Envelope(payload_type="t", payload=_statement(), signatures=[types_pb2.Signature(key_id="FI")])
    found = [
        wire.EventBody(run_reported=wire.RunReported(run_id="0" * 32, attempt=1, state=types_pb2.Run.RUNNING)),
        wire.EventBody(inventory_reported=wire.InventoryReported(datasets=[types_pb2.Dataset(dataset_id="FI-lct")])),
        wire.EventBody(summary_released=wire.SummaryReleased(run_id="0" * 32, attempt=1, statement=envelope)),
    ]
    return [body.SerializeToString() for body in found]


def _commands() -> list[bytes]:
    signed = types_pb2.Envelope(payload_type=JOB_TYPE, payload=job().to_bytes(), signatures=[types_pb2.Signature()])
    offer = wire.Offer(run_id="0" * 32, job_id=UUID, round=1, attempt=1, job=signed, addenda=[signed])
    found = [
        wire.CommandBody(offer=offer),
        wire.CommandBody(cancel=wire.Cancel(run_id="0" * 32)),
        wire.CommandBody(trust_update=wire.TrustUpdate()),
    ]
    return [body.SerializeToString() for body in found]


def of_corpus(layer: str, name: str) -> list[bytes]:
    """Return the bytes that the corpus' entries have under ``name``, the small ones."""
    found = [made(entry.input[name]) for entry in entries_of(layer) if name in entry.input]
    return [bytes(data) for data in found if isinstance(data, bytes) and len(data) < 4096]


@cache
def parsers() -> Mapping[str, Parser]:
    """Return all of them by name."""
    spec, note = SPEC.summary, parse_note
    signed = to_json(sign(JOB_TYPE, job().to_bytes(), key_id="ada", key=KEY))
    vote = Vote(analysis=ANALYSIS, reviewer="rev1", verdict="approve", at=MOMENT)
    approval = JobApproval(
        approval_id=UUID, federation="demo", node="FI", job_id=UUID, job_digest=ZERO, approver="holder", at=MOMENT
    )
    standing = StandingApproval(
        approval_id=UUID, federation="demo", node="FI", project="lactose", analysis=ANALYSIS, datasets=("FI-lct",),
        approver="holder", not_before=MOMENT, not_after=MOMENT,
    )  # fmt: skip
    decision = ReleaseDecision(
        node="FI", run_id="0" * 32, summary_digest=ZERO, decision="RELEASE", reason="fine", checker="eva", at=MOMENT
    )
    addendum = PassportAddendum.model_validate(
        {"job_id": UUID, "job_digest": digest(b""), "node": "FI", "passport_digest": ZERO, "at": MOMENT}
    )
    listing = bundle_listing({"manifest.json": b"{}", "Snakefile": b""})
    return {
        "envelope": Parser(from_json, lambda: [signed]),
        "job": Parser(parse_job, lambda: [job().to_bytes(), *of_corpus("jobs", "payload")]),
        "manifest": Parser(manifest_and_parameters, lambda: [json.dumps(MANIFEST).encode()]),
        "directory": Parser(parse_directory, lambda: [directory_bytes(_directory())]),
        "vote": Parser(parse_vote, lambda: [vote.to_bytes()]),
        "authorship": Parser(
            parse_authorship, lambda: [Authorship(analysis=ANALYSIS, author="ada", at=MOMENT).to_bytes()]
        ),
        "approval": Parser(parse_approval, lambda: [approval.to_bytes(), standing.to_bytes()]),
        "decision": Parser(parse_decision, lambda: [decision.to_bytes()]),
        "statement": Parser(parse_statement, lambda: [_statement()]),
        "addendum": Parser(parse_addendum, lambda: [addendum.model_dump_json().encode()]),
        "listing": Parser(parse_listing, lambda: [listing, *of_corpus("bundles", "bytes")]),
        "note": Parser(note, _notes),
        "note_line": Parser(parse_line, _notes),
        "summary": Parser(lambda data: parse_summary(data, spec, released_only=True), lambda: [released()]),
        "result": Parser(parse_result, lambda: [b'{"job_id":"x","state":"COMPLETED","variants":[],"nodes":[]}']),
        "invitation": Parser(text_of(parse_token), lambda: [b"hansa2.FI.AAAA.AAAA.localhost:1.AAAA"]),
        "bearer_token": Parser(text_of(claimed_name), lambda: [b"e30.e30.e30"]),
        "node_frame": Parser(frame_of_a_node, _frames),
        "event_body": Parser(event_of_a_node, _events),
        "command_body": Parser(lambda data: read_message(wire.CommandBody, data), _commands),
        "coordinator_frame": Parser(
            lambda data: read_message(wire.CoordinatorFrame, data),
            lambda: [wire.CoordinatorFrame(command=wire.Command(epoch=1, body=_commands()[0])).SerializeToString()],
        ),
        "submission": Parser(
            submission,
            lambda: [job_service_pb2.SubmitJobRequest(request_id="r").SerializeToString()],
        ),
        "enrolment": Parser(
            lambda data: read_message(enrolment_service_pb2.EnrolRequest, data),
            lambda: [enrolment_service_pb2.EnrolRequest(token_secret="s").SerializeToString()],
        ),
        "invite": Parser(
            lambda data: read_message(admin_service_pb2.InviteNodeRequest, data),
            lambda: of_corpus("calls", "bytes"),
        ),
    }
