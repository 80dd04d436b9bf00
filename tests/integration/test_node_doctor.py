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
from hansa.v1 import enrolment_service_pb2 as wire
from node_agent.config import StateFolder, create_state_folder
from node_agent.doctor import FAILED, OK, WARNING, Finding, examine
from node_agent.keys.enrolment import enrol
from node_agent.policy.file import store_policy
from node_agent.policy.policy import policy_of
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
