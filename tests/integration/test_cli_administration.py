"""The operator's commands as processes against a real coordinator."""

import hashlib
import json
import shutil
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
from tests.support.coordinator_process import OPERATORS, Served, profile_of, serving_coordinator
from tests.support.hansa_command import Ended, hansa
from tests.support.key_ceremony import PEOPLE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_coordinator(tmp_path_factory.mktemp("federation")) as found:
        yield found


@pytest.fixture
def operator(served: Served) -> Path:
    return served.operators[0]


def two(served: Served, *arguments: str) -> Ended:
    """Let one operator ask, and the other carry it out."""
    first = hansa(*arguments, "--output", "json", profile=served.operators[0])
    assert (first.code, json.loads(first.err)["error"]["reason"]) == (1, "PENDING_SECOND")
    return hansa(*arguments, profile=served.operators[1])


def test_people_are_those_of_the_directory_and_do_what_it_says(served: Served, operator: Path) -> None:
    listed = hansa("admin", "person", "list", "--output", "json", profile=operator)
    roles = {one["name"]: one["roles"] for one in listed.document["persons"]}
    assert roles == {name: kinds for name, (_, kinds) in (PEOPLE | OPERATORS).items()}

    ada = profile_of("ada", served.ceremony.key("ada"), operator)
    assert hansa("nodes", "list", profile=ada).code == 0
    refused = hansa("admin", "person", "list", profile=ada)
    assert (refused.code, refused.reason) == (1, "PERMISSION_DENIED")
    audit = hansa("admin", "audit", "list", "--output", "json", profile=operator)
    assert all(entry["actor"] for entry in audit.document["entries"])


def test_who_was_added_and_signed_for_may_ask_once_it_is_published(served: Served, operator: Path) -> None:
    ceremony = served.ceremony
    eve = profile_of("eve", ceremony.key("eve"), operator)
    assert hansa("nodes", "list", profile=eve).reason == "UNAUTHENTICATED"
    ceremony.add_people({"eve": ("uni", ["researcher"])})
    unsigned = hansa("trust", "publish", ceremony.repo, profile=operator)
    assert (unsigned.code, unsigned.reason) == (2, "TRUST_THRESHOLD")
    assert hansa("nodes", "list", profile=eve).reason == "UNAUTHENTICATED"
    ceremony.sign("targets2", "targets3")
    published = hansa("trust", "publish", ceremony.repo, "--output", "json", profile=operator)
    assert (published.code, published.err) == (0, "")
    assert hansa("nodes", "list", profile=eve).code == 0
    assert published.document["directory_version"] == ceremony.view().directory.version


def test_an_analysis_is_reviewed_signed_for_and_found(served: Served, operator: Path) -> None:
    ceremony = served.ceremony
    bundle = ceremony.bundle("rev1", "rev2")
    assert ceremony.hansa("analysis", "publish", bundle, "--repo", ceremony.repo)["state"] == "approved"
    ceremony.sign("targets1", "targets2")
    assert hansa("trust", "publish", ceremony.repo, profile=operator).code == 0
    (found,) = hansa("analysis", "list", "--output", "json", profile=operator).document["analyses"]
    assert (found["name"], found["state"], found["approved_by"]) == ("trivial", "approved", ["rev1", "rev2"])
    shown = hansa("analyses", "show", "trivial", "--output", "json", profile=operator)
    assert shown.document["digest"] == found["digest"]


def test_an_older_repository_is_not_put_in_force_again(served: Served, operator: Path, tmp_path: Path) -> None:
    ceremony = served.ceremony
    old = shutil.copytree(ceremony.repo, tmp_path / "old")
    ceremony.hansa("trust", "renew", ceremony.repo)
    ceremony.sign("targets1", "targets2")
    assert hansa("trust", "publish", ceremony.repo, profile=operator).code == 0
    refused = hansa("trust", "publish", old, profile=operator)
    assert (refused.code, refused.reason) == (1, "TRUST_ROLLBACK")


def test_a_node_is_invited_by_two_with_a_token_alone_on_stdout(served: Served, operator: Path) -> None:
    invited = two(served, "admin", "node", "invite", "FI", "--valid", "10m")
    assert (invited.code, len(invited.out.split())) == (0, 1)
    token = parse_token(invited.out)
    pinned = Path(tomllib.loads(operator.read_text())["trust_root"])
    assert token.trust_root_digest == hashlib.sha256(pinned.read_bytes()).digest()
    assert "Valid until" in invited.err
    unknown = hansa("admin", "node", "confirm", "XX", "--yes", profile=operator)
    assert (unknown.code, unknown.reason) == (1, "NODE_UNKNOWN")
    early = hansa("admin", "node", "confirm", "FI", "--yes", profile=operator)
    assert (early.code, early.reason) == (1, "NODE_STATE_CONFLICT")
    wrong = hansa("admin", "node", "invite", "not a name", profile=operator)
    assert (wrong.code, wrong.reason) == (1, "NODE_INVALID")


def test_what_waits_for_a_second_operator_is_listed_and_can_be_withdrawn(served: Served, operator: Path) -> None:
    assert hansa("admin", "node", "invite", "SE", profile=operator).reason == "PENDING_SECOND"
    (waiting,) = hansa("admin", "proposal", "list", "--output", "json", profile=operator).document["proposals"]
    assert (waiting["method"], waiting["subject"], waiting["proposed_by"]) == ("InviteNode", "SE for 1800 s", "olga")
    withdrawn = hansa("admin", "proposal", "withdraw", waiting["proposal"], profile=served.operators[1])
    assert withdrawn.code == 0
    listed = hansa("admin", "proposal", "list", "--output", "json", profile=operator)
    assert listed.document == {"proposals": []}
    assert hansa("admin", "node", "invite", "SE", profile=served.operators[1]).reason == "PENDING_SECOND"


def enrol(token: str, operator: Path) -> str:
    """Enrol with a new key as a node does; return the key's fingerprint."""
    invitation = parse_token(token)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    ca_file = tomllib.loads(operator.read_text())["ca_file"]
    credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    with grpc.secure_channel(invitation.endpoint, credentials) as channel:
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        request = EnrolRequest(
            token_secret=invitation.secret, csr_pem=pem, trust_root_digest=invitation.trust_root_digest
        )
        answer = EnrolmentServiceStub(channel).Enrol(request)
    assert hashlib.sha256(answer.trust_root).digest() == invitation.trust_root_digest
    return answer.key_fingerprint


def test_a_node_is_admitted_only_with_the_fingerprint_of_its_key(served: Served, operator: Path) -> None:
    invited = two(served, "admin", "node", "invite", "ES")
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


def test_a_node_is_suspended_by_one_and_resumed_and_revoked_by_two(served: Served, operator: Path) -> None:
    fingerprint = enrol(two(served, "admin", "node", "invite", "IT").out, operator)
    steps = [
        (("confirm", "IT", "--fingerprint", fingerprint), "ACTIVE", 1),
        (("suspend", "IT", "--reason", "maintenance"), "SUSPENDED", 1),
        (("resume", "IT"), "ACTIVE", 2),
        (("revoke", "IT", "--reason", "left"), "REVOKED", 2),
    ]
    for arguments, state, people in steps:
        command = ("admin", "node", *arguments)
        done = two(served, *command) if people == 2 else hansa(*command, profile=operator)
        assert (done.code, done.err) == (0, "")
        assert state in done.out
    again = hansa("admin", "node", "resume", "IT", profile=operator)
    assert (again.code, again.reason) == (1, "NODE_STATE_CONFLICT")
