from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.ca.authority import Authority, Window, create_authority, issue_server
from hansa.runtime.clock import utc_now
from hansa.trust.client import TrustClient
from hansa.trust.files import FilesSource
from hansa.v1 import enrolment_service_pb2 as wire
from node_agent.config import PINNED_ROOT, StateFolder, create_state_folder
from node_agent.doctor import FAILED, OK, WARNING, Finding, examine, libraries
from node_agent.keys.enrolment import enrol
from node_agent.keys.identity import load_identity
from node_agent.policy.file import store_policy
from node_agent.policy.policy import policy_of
from tests.support.agent import make_world, pinned
from tests.support.enrolment_double import EnrolmentDouble, enrolment_listener, pem_of


@contextlib.contextmanager
def node_listener(server_ca: Authority, node_ca: Authority) -> Iterator[str]:
    """Serve over mutual TLS, as a coordinator's node port; yield the endpoint."""
    key = ec.generate_private_key(ec.SECP256R1())
    window = Window(datetime.now(UTC), timedelta(days=1))
    leaf = issue_server(server_ca, key.public_key(), names=["127.0.0.1"], window=window)
    chain = leaf.public_bytes(serialization.Encoding.PEM)
    credentials = grpc.ssl_server_credentials(
        [(pem_of(key), chain)], root_certificates=node_ca.certificate_pem, require_client_auth=True
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def enrolled(folder: Path, double: EnrolmentDouble, endpoint: str) -> StateFolder:
    def point_to(reply: wire.EnrolResponse) -> None:
        reply.node_endpoint = endpoint

    double.change = point_to
    state = create_state_folder(folder / "state")
    store_policy(state.policy_file, policy_of({"admission": {"submitters": ["ada"], "analyses": ["a@1.0"]}}))
    with enrolment_listener(double) as invitation:
        enrol(invitation.token(), state)
    return state


def finding(state: StateFolder, check: str, now: datetime | None = None) -> Finding:
    clock = (lambda: now) if now else (lambda: datetime.now(UTC))
    return next(one for one in examine(state.path, clock) if one.check == check)


def test_a_node_in_order_has_nothing_to_mend(tmp_path: Path) -> None:
    double = EnrolmentDouble()
    with node_listener(double.server_ca, double.node_ca) as endpoint:
        state = enrolled(tmp_path, double, endpoint)
        found = {one.check: one for one in examine(state.path)}
    for check in ("state folder", "keys", "agent.toml", "policy", "bubblewrap", "setpriv", "redis-server", "clock"):
        assert found[check].outcome == OK, found[check]
    assert found["coordinator"].outcome == OK, found["coordinator"]
    # The double's certificates live a day, which the doctor calls soon.
    assert found["certificate"].outcome in {OK, WARNING}


def test_a_coordinator_that_does_not_know_our_certificate_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    double = EnrolmentDouble()
    with node_listener(double.server_ca, create_authority("another node CA", datetime.now(UTC))) as endpoint:
        state = enrolled(tmp_path, double, endpoint)
        refused = finding(state, "coordinator")
    away = finding(state, "coordinator")
    assert refused.outcome == away.outcome == FAILED
    assert "revoked" in refused.remedy
    assert "firewall" in away.remedy


def test_a_server_that_our_ca_did_not_sign_is_no_coordinator(tmp_path: Path) -> None:
    double = EnrolmentDouble()
    with node_listener(create_authority("another", datetime.now(UTC)), double.node_ca) as endpoint:
        found = finding(enrolled(tmp_path, double, endpoint), "coordinator")
    assert found.outcome == FAILED
    assert "another server" in found.remedy


@pytest.mark.parametrize(
    ("away", "outcome"),
    [(timedelta(hours=1), WARNING), (timedelta(days=2), FAILED), (-timedelta(days=2), FAILED)],
)
def test_a_certificate_out_of_its_time_is_found(tmp_path: Path, away: timedelta, outcome: str) -> None:
    state = enrolled(tmp_path, EnrolmentDouble(), "127.0.0.1:1")
    assert finding(state, "certificate", datetime.now(UTC) + away).outcome == outcome


def test_a_clock_behind_the_folders_last_change_is_found(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / "state")
    assert finding(state, "clock", datetime.now(UTC) - timedelta(days=1)).outcome == FAILED


# --- trust ----------------------------------------------------------------------


def trusting(folder: Path, *, ours: bool = True) -> StateFolder:
    """Return an enrolled node that has fetched a federation's trust, in whose directory it stands or not."""
    state = enrolled(folder, EnrolmentDouble(), "127.0.0.1:1")
    world, keys = make_world(folder / "analysis", utc_now()), load_identity(state).public
    if ours:
        changes = {"signing_key": keys.signing, "agreement_key": keys.agreement}
        nodes = world.directory.nodes
        world.change(nodes=tuple(one.model_copy(update=changes) if one.node == "FI" else one for one in nodes))
    (state.trust / PINNED_ROOT).write_bytes(world.root)
    TrustClient(state.trust, world.root, FilesSource(world.files)).refresh(world.now)
    return state


def test_a_node_whose_trust_is_in_order_is_told_so(tmp_path: Path) -> None:
    state = trusting(tmp_path)
    store_policy(state.policy_file, policy_of({"approval": {"data_holders": [pinned("holder-fi")]}}))
    found = {one.check: one for one in examine(state.path)}
    for check in ("own keys", "pinned root", "trust", "directory", "data holders", "libraries"):
        assert found[check].outcome == OK, found[check]
    assert found["pinned root"].detail.startswith("sha256:")


def test_before_anything_was_verified_the_doctor_says_so(tmp_path: Path) -> None:
    state = enrolled(tmp_path, EnrolmentDouble(), "127.0.0.1:1")
    found = {one.check: one for one in examine(state.path)}
    assert (found["trust"].outcome, found["directory"].outcome) == (FAILED, FAILED)
    assert (found["data holders"].outcome, "no job" in found["data holders"].detail) == (WARNING, True)


def test_expired_metadata_are_found_and_still_say_who_is_in_the_directory(tmp_path: Path) -> None:
    state = trusting(tmp_path)
    later = utc_now() + timedelta(days=2)
    expired = finding(state, "trust", later)
    assert (expired.outcome, "declined" in expired.remedy) == (FAILED, True)
    assert finding(state, "directory", later).outcome == OK


def test_a_directory_with_other_keys_of_this_node_is_found(tmp_path: Path) -> None:
    found = finding(trusting(tmp_path, ours=False), "directory")
    assert found.outcome == FAILED
    assert "hansa-node card" in found.remedy


def test_a_data_holder_whom_the_directory_does_not_name_with_that_key_is_found(tmp_path: Path) -> None:
    state = trusting(tmp_path)
    store_policy(state.policy_file, policy_of({"approval": {"data_holders": [pinned("ada")]}}))
    found = finding(state, "data holders")
    assert (found.outcome, "ada" in found.detail) == (WARNING, True)


@pytest.mark.parametrize("damage", ["signing.key", "agreement.key"])
def test_a_key_of_the_node_that_is_missing_or_of_another_kind_is_found(tmp_path: Path, damage: str) -> None:
    state = trusting(tmp_path)
    (state.keys / damage).unlink()
    assert finding(state, "own keys").outcome == FAILED
    (state.keys / damage).write_bytes((state.keys / "credential.pem").read_bytes())
    assert finding(state, "own keys").outcome == FAILED


def test_keys_that_others_can_read_are_found(tmp_path: Path) -> None:
    state = trusting(tmp_path)
    (state.keys / "signing.key").chmod(0o640)
    found = finding(state, "keys")
    assert (found.outcome, "signing.key" in found.detail) == (FAILED, True)


def test_a_root_that_others_can_replace_or_that_was_replaced_is_found(tmp_path: Path) -> None:
    state = trusting(tmp_path)
    (state.trust / PINNED_ROOT).chmod(0o622)
    assert finding(state, "pinned root").outcome == FAILED
    (state.trust / PINNED_ROOT).write_bytes(b"{}")
    assert finding(state, "trust").outcome == FAILED


def test_a_library_with_a_known_defect_is_found_and_one_that_is_missing_is_not_judged() -> None:
    found = libraries({"protobuf": "6.31.0", "PyJWT": ""})
    assert (found.outcome, "6.31.1" in found.remedy) == (FAILED, True)
    assert libraries({"protobuf": ""}).outcome == OK
