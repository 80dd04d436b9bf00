from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from coordinator.ca.authority import Window, create_authority, issue_node
from hansa.contract.errors import HansaError, Reason
from hansa.v1 import node_service_pb2
from node_agent.config import StateFolder, create_state_folder
from node_agent.keys.credential import (
    CREDENTIAL,
    PENDING,
    Credential,
    checked_credential,
    is_enrolled,
    key_fingerprint,
    load_credential,
    pending_key,
    signing_request,
    store_credential,
)
from node_agent.keys.rotation import renew_at
from node_agent.link.renewal import Renewal, RenewedError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CA = create_authority("node CA", NOW)


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return create_state_folder(tmp_path / "state")


def certificate_for(key_pem: bytes) -> bytes:
    public = x509.load_pem_x509_csr(signing_request(key_pem)).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    issued = issue_node(CA, public, federation="demo.example", node="FI", window=Window(NOW, timedelta(days=1)))
    return issued.public_bytes(serialization.Encoding.PEM)


def test_the_key_is_made_once_and_closed_to_others(state: StateFolder) -> None:
    first = pending_key(state)
    assert pending_key(state) == first
    assert stat.S_IMODE((state.keys / PENDING).stat().st_mode) == 0o600
    assert not is_enrolled(state)


def test_a_request_proves_the_key_and_claims_no_name(state: StateFolder) -> None:
    request = x509.load_pem_x509_csr(signing_request(pending_key(state)))
    assert request.is_signature_valid
    assert len(request.subject) == 0
    assert list(request.extensions) == []


def test_a_stored_credential_comes_back_and_the_next_key_is_another(state: StateFolder) -> None:
    key_pem = pending_key(state)
    credential = checked_credential(key_pem, certificate_for(key_pem))
    store_credential(state, credential)
    assert load_credential(state) == credential
    assert stat.S_IMODE((state.keys / CREDENTIAL).stat().st_mode) == 0o600
    assert key_fingerprint(pending_key(state)) != key_fingerprint(key_pem)
    assert load_credential(state) == credential


class Renewer:
    """A coordinator that answers a request for renewal with a certificate of each of ``grants`` in turn."""

    def __init__(self, *grants: dict[str, Any]) -> None:
        self.grants = list(grants)

    async def RenewCertificate(self, request: Any, **_call: Any) -> Any:  # noqa: N802
        public = x509.load_pem_x509_csr(request.csr_pem.encode()).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        wanted: dict[str, Any] = {"federation": "demo.example", "node": "FI", "window": Window(NOW, timedelta(days=1))}
        issued = issue_node(CA, public, **(wanted | self.grants.pop(0)))
        pem = issued.public_bytes(serialization.Encoding.PEM).decode()
        return node_service_pb2.RenewCertificateResponse(certificate_pem=pem)


@pytest.mark.parametrize(
    "useless",
    [
        {"node": "ES"},
        {"federation": "other.example"},
        {"window": Window(NOW - timedelta(days=9), timedelta(days=1))},
        {"window": Window(NOW + timedelta(days=9), timedelta(days=1))},
    ],
)
async def test_a_renewal_that_would_shut_the_node_out_is_not_taken(state: StateFolder, useless: dict[str, Any]) -> None:
    key_pem = pending_key(state)
    store_credential(state, Credential(key_pem, certificate_for(key_pem)))
    before = load_credential(state)
    kept: list[bool] = []

    def draw() -> float:
        kept.append(load_credential(state) == before)
        return -1.0  # tried again at once

    renewer, asked = Renewer(useless, {}), asyncio.Event()
    asked.set()
    with pytest.raises(RenewedError):
        await Renewal(state=state, clock=lambda: NOW + timedelta(hours=1), draw=draw).run(cast("Any", renewer), asked)
    assert kept
    assert all(kept)
    assert renewer.grants == []
    assert load_credential(state).certificate.not_valid_after_utc > NOW + timedelta(hours=1)


def test_a_certificate_of_another_key_is_refused(state: StateFolder) -> None:
    key_pem = pending_key(state)
    store_credential(state, Credential(key_pem, certificate_for(key_pem)))
    with pytest.raises(ValueError, match="another key"):
        checked_credential(pending_key(state), certificate_for(key_pem))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_credential_is_an_error_and_not_a_new_key(state: StateFolder, content: bytes) -> None:
    for name, load in ((CREDENTIAL, load_credential), (PENDING, pending_key)):
        (state.keys / name).write_bytes(content)
        with pytest.raises(HansaError) as refused:
            load(state)
        assert refused.value.reason is Reason.CONFIG_INVALID
        assert name in refused.value.public


def test_a_key_of_another_kind_is_refused(state: StateFolder) -> None:
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (state.keys / PENDING).write_bytes(other)
    with pytest.raises(HansaError):
        pending_key(state)


def test_without_a_credential_the_node_is_told_to_enrol(state: StateFolder) -> None:
    with pytest.raises(HansaError) as refused:
        load_credential(state)
    assert "hansa-node enrol" in refused.value.public


@given(st.integers(0, 2**159), st.timedeltas(timedelta(minutes=1), timedelta(days=400)))
def test_a_certificate_is_renewed_about_half_way_and_always_at_one_moment(serial: int, life: timedelta) -> None:
    moment = renew_at(serial, NOW, NOW + life)
    assert moment == renew_at(serial, NOW, NOW + life)
    assert NOW + life * 0.449 <= moment <= NOW + life * 0.551
