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
from tests.support.catalogue_answers import MANIFEST
from tests.support.coordinator_process import profile_of, serving_coordinator
from tests.support.hansa_command import hansa

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving_coordinator(tmp_path_factory.mktemp("federation")) as profile:
        yield profile


def test_a_person_who_is_added_may_ask_but_not_operate(operator: Path, tmp_path: Path) -> None:
    hansa("key", "create", tmp_path / "ada", profile=operator)
    add = ("admin", "person", "add", "ada", "--role", "researcher", "--key", tmp_path / "ada.pub")
    added = hansa(*add, "--output", "json", profile=operator)
    again = hansa(*add, "--output", "json", profile=operator)
    assert (added.code, added.document["role"]) == (0, "researcher")
    assert again.document == added.document
    listed = hansa("admin", "person", "list", "--output", "json", profile=operator)
    assert {one["name"] for one in listed.document["persons"]} == {"olga", "ada"}

    ada = profile_of("ada", tmp_path / "ada", operator)
    assert hansa("nodes", "list", profile=ada).code == 0
    refused = hansa("admin", "person", "list", profile=ada)
    assert (refused.code, refused.reason) == (1, "PERMISSION_DENIED")
    audit = hansa("admin", "audit", "list", "--output", "json", profile=operator)
    assert all(entry["actor"] for entry in audit.document["entries"])


def test_an_analysis_is_published_once_and_found(operator: Path, tmp_path: Path) -> None:
    folder = tmp_path / "analysis"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "Snakefile").write_text("rule all: ...")
    publish = ("admin", "analysis", "publish", folder)
    published = hansa(*publish, "--output", "json", profile=operator)
    assert (published.code, published.err) == (0, "")
    assert (hansa(*publish, profile=operator)).code == 0
    (folder / "Snakefile").write_text("rule all: other")
    changed = hansa(*publish, profile=operator)
    assert (changed.code, changed.reason) == (1, "ANALYSIS_EXISTS")
    shown = hansa("analyses", "show", "allele-frequency", "--output", "json", profile=operator)
    assert shown.document["digest"] == published.document["digest"]


def test_a_node_is_invited_with_a_token_alone_on_stdout(operator: Path) -> None:
    invited = hansa("admin", "node", "invite", "FI", "--valid", "10m", profile=operator)
    assert (invited.code, len(invited.out.split())) == (0, 1)
    assert invited.out.startswith("hansa1.FI.")
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
        answer = EnrolmentServiceStub(channel).Enrol(EnrolRequest(token_secret=invitation.secret, csr_pem=pem))
    return answer.key_fingerprint


def test_a_node_is_admitted_only_with_the_fingerprint_of_its_key(operator: Path) -> None:
    invited = hansa("admin", "node", "invite", "ES", profile=operator)
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
    invited = hansa("admin", "node", "invite", "IT", profile=operator)
    fingerprint = enrol(invited.out, operator)
    steps = [
        (("confirm", "IT", "--fingerprint", fingerprint), "ACTIVE"),
        (("suspend", "IT", "--reason", "maintenance"), "SUSPENDED"),
        (("resume", "IT"), "ACTIVE"),
        (("revoke", "IT", "--reason", "left"), "REVOKED"),
    ]
    for arguments, state in steps:
        done = hansa("admin", "node", *arguments, "--output", "json", profile=operator)
        assert (done.code, done.document["state"]) == (0, state)
    again = hansa("admin", "node", "resume", "IT", profile=operator)
    assert (again.code, again.reason) == (1, "NODE_STATE_CONFLICT")
