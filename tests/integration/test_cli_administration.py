"""The operator's commands as processes against a real coordinator."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hansa.contract.enrolment import parse_token
from hansa.v1.enrolment_service_pb2 import EnrolRequest
from hansa.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from tests.support.coordinator_process import serving_coordinator
from tests.support.hansa_command import Ended, hansa
from tests.support.job_world import BUNDLE_DIGEST

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving_coordinator(tmp_path_factory.mktemp("federation")) as profile:
        yield profile


def by_two(operator: Path, *arguments: str) -> Ended:
    """Run a command as one operator, who is told to wait for a second, and then as the other."""
    first = hansa(*arguments, profile=operator)
    assert (first.code, first.reason) == (1, "PENDING_SECOND"), first
    return hansa(*arguments, profile=operator.with_name("op2.toml"))


def test_people_are_those_of_the_directory_and_who_does_not_operate_is_refused(operator: Path) -> None:
    listed = hansa("admin", "person", "list", "--output", "json", profile=operator)
    assert {one["name"] for one in listed.document["persons"]} >= {"op1", "op2", "ada", "aud"}
    ada = operator.with_name("ada.toml")
    assert hansa("nodes", "list", profile=ada).code == 0
    refused = hansa("admin", "person", "list", profile=ada)
    assert (refused.code, refused.reason) == (1, "PERMISSION_DENIED")


def test_an_auditor_reads_what_was_done(operator: Path) -> None:
    auditor = operator.with_name("aud.toml")
    audit = hansa("admin", "audit", "list", "--output", "json", profile=auditor)
    assert all(entry["actor"] for entry in audit.document["entries"])
    assert audit.document["entries"][-1]["action"] == "trust_in_force"
    refused = hansa("admin", "node", "suspend", "FI", profile=auditor)
    assert (refused.code, refused.reason) == (1, "PERMISSION_DENIED")


def test_an_approved_analysis_is_found(operator: Path) -> None:
    shown = hansa("analyses", "show", "allele-frequency", "--output", "json", profile=operator)
    assert (shown.code, shown.document["digest"]) == (0, BUNDLE_DIGEST)


def test_what_waits_for_a_second_operator_is_listed_and_can_be_taken_back(operator: Path) -> None:
    invite = ("admin", "node", "invite", "SE")
    assert hansa(*invite, profile=operator).reason == "PENDING_SECOND"
    listed = hansa("admin", "proposal", "list", "--output", "json", profile=operator.with_name("op2.toml"))
    (waiting,) = listed.document["proposals"]
    assert (waiting["method"], waiting["proposed_by"]) == ("InviteNode", "op1")
    taken = hansa("admin", "proposal", "withdraw", waiting["proposal"], profile=operator)
    assert taken.code == 0
    assert hansa(*invite, profile=operator.with_name("op2.toml")).reason == "PENDING_SECOND"


def test_a_node_is_invited_with_a_token_alone_on_stdout(operator: Path) -> None:
    invited = by_two(operator, "admin", "node", "invite", "FI", "--valid", "10m")
    assert (invited.code, len(invited.out.split())) == (0, 1)
    assert invited.out.startswith("hansa2.FI.")
    assert "Valid until" in invited.err
    unknown = hansa("admin", "node", "confirm", "XX", "--yes", profile=operator)
    assert (unknown.code, unknown.reason) == (1, "NODE_UNKNOWN")
    early = hansa("admin", "node", "confirm", "FI", "--yes", profile=operator)
    assert (early.code, early.reason) == (1, "NODE_STATE_CONFLICT")
    wrong = hansa("admin", "node", "invite", "not a name", profile=operator)
    assert (wrong.code, wrong.reason) == (1, "NODE_INVALID")


def enrol(token: str, operator: Path) -> str:
    """Enrol with a new key as a node does; return the key's fingerprint."""
    invitation = parse_token(token)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    ca_file = tomllib.loads(operator.read_text())["ca_file"]
    credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    with grpc.secure_channel(invitation.endpoint, credentials) as channel:
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        answer = EnrolmentServiceStub(channel).Enrol(
            EnrolRequest(token_secret=invitation.secret, csr_pem=pem, trust_root_digest=invitation.trust_root_digest)
        )
    return answer.key_fingerprint


def test_a_node_is_admitted_only_with_the_fingerprint_of_its_key(operator: Path) -> None:
    invited = by_two(operator, "admin", "node", "invite", "ES")
    fingerprint = enrol(invited.out, operator)
    confirm = ("admin", "node", "confirm", "ES", "--output", "json")

    for typed in ("", "no\n", "y\n"):
        asked = hansa(*confirm, profile=operator, typed=typed)
        assert asked.code == 1
        assert fingerprint in asked.err
    wrong = hansa(*confirm, "--fingerprint", f"sha256:{'0' * 64}", profile=operator)
    assert (wrong.code, json.loads(wrong.err)["error"]["reason"]) == (1, "FINGERPRINT_MISMATCH")
    assert "PENDING_CONFIRMATION" in (hansa("admin", "node", "list", profile=operator)).out

    confirmed = hansa(*confirm, profile=operator, typed="yes\n")
    assert (confirmed.code, confirmed.document["state"]) == (0, "ACTIVE")


def test_a_node_is_suspended_resumed_and_revoked(operator: Path) -> None:
    invited = by_two(operator, "admin", "node", "invite", "IT")
    fingerprint = enrol(invited.out, operator)
    steps = [
        (("confirm", "IT", "--fingerprint", fingerprint), "ACTIVE"),
        (("suspend", "IT", "--reason", "maintenance"), "SUSPENDED"),
        (("resume", "IT"), "ACTIVE"),
        (("revoke", "IT", "--reason", "left"), "REVOKED"),
    ]
    for arguments, state in steps:
        command = ("admin", "node", *arguments, "--output", "json")
        two = arguments[0] in {"resume", "revoke"}
        done = by_two(operator, *command) if two else hansa(*command, profile=operator)
        assert (done.code, done.document["state"]) == (0, state)
    again = hansa("admin", "node", "resume", "IT", profile=operator)
    assert (again.code, again.reason) == (1, "NODE_STATE_CONFLICT")
