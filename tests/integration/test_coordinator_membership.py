"""How a node joins, is let in on each call, and is shut out, over real mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.ca.authority import Authority, create_authority
from coordinator.store.sessions import SessionRepository
from hansa.contract.enrolment import parse_token
from hansa.contract.errors import Reason
from hansa.contract.identity import node_of, node_uri
from hansa.runtime.clock import utc_now
from hansa.v1 import admin_service_pb2, catalogue_service_pb2, enrolment_service_pb2, node_service_pb2, types_pb2
from hansa.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from tests.support.live_coordinator import (
    CALL_SECONDS,
    FEDERATION,
    LiveCoordinator,
    NodeKey,
    live_coordinator,
    reason_of,
)
from tests.support.scripted_node import NodeStore, WireNode


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "state") as coordinator:
        yield coordinator


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def refused(call: Any) -> Reason | None:
    return reason_of(await refusal(call))


async def drained(stream: Any) -> None:
    """Read to the end; the status comes after the last message only."""
    async with asyncio.timeout(CALL_SECONDS):
        while await stream.read() is not grpc.aio.EOF:
            pass


def renewal(key: NodeKey | None = None) -> node_service_pb2.RenewCertificateRequest:
    return node_service_pb2.RenewCertificateRequest(request_id="r", csr_pem=(key or NodeKey()).csr())


async def renew(live: LiveCoordinator, node_key: NodeKey, fresh: NodeKey | None = None) -> NodeKey:
    """Call something that every admitted node may call."""
    fresh = fresh or NodeKey()
    answer = await live.node(node_key).RenewCertificate(renewal(fresh), timeout=CALL_SECONDS)
    fresh.certificate_pem = answer.certificate_pem
    return fresh


def enrol_request(live: LiveCoordinator, secret: str, csr_pem: str) -> enrolment_service_pb2.EnrolRequest:
    return enrolment_service_pb2.EnrolRequest(token_secret=secret, csr_pem=csr_pem, trust_root_digest=live.root_digest)


async def states(live: LiveCoordinator) -> dict[str, str]:
    answer = await live.catalogue("ListNodes", catalogue_service_pb2.ListNodesRequest())
    return {node.node: types_pb2.Node.State.Name(node.state) for node in answer.nodes}


def forge(  # a certificate that our node CA did sign, but should never have
    ca: Authority, key: NodeKey, uris: Sequence[str], *, serial: int | None = None, common_name: str = ""
) -> NodeKey:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    now = utc_now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ca.certificate.subject)
        .public_key(key.key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=True)
    certificate = builder.sign(ca.key, hashes.SHA256())
    return NodeKey(key.key, certificate.public_bytes(serialization.Encoding.PEM).decode())


async def test_a_node_joins_by_invitation_key_and_confirmation(live: LiveCoordinator) -> None:
    token = await live.invite("FI")
    assert await states(live) == {"FI": "INVITED"}
    invitation = parse_token(token)
    assert invitation.ca_fingerprint == live.foundation.keys.server_ca.fingerprint
    assert invitation.endpoint == live.address("enrolment")
    assert invitation.trust_root_digest == live.root_digest
    node_key = await live.enrol(token, NodeKey())
    assert await states(live) == {"FI": "PENDING_CONFIRMATION"}
    assert await refused(renew(live, node_key)) is Reason.NODE_NOT_CONFIRMED
    await live.confirm("FI", node_key.fingerprint)
    assert await states(live) == {"FI": "ACTIVE"}
    await renew(live, node_key)


async def test_a_nodes_certificate_says_who_it_is_and_nothing_more(live: LiveCoordinator) -> None:
    certificate = (await live.enrol(await live.invite("FI"), NodeKey())).certificate
    assert node_of(certificate, FEDERATION) == "FI"
    assert list(certificate.subject) == []
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_before_utc < utc_now()
    assert certificate.not_valid_after_utc - utc_now() < timedelta(days=7)


async def test_names_in_the_request_for_a_certificate_are_ignored(live: LiveCoordinator) -> None:
    token, key = await live.invite("FI"), NodeKey()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(node_uri(FEDERATION, "ES"))])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ES")]))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key.key, hashes.SHA256())
    )
    csr = request.public_bytes(serialization.Encoding.PEM).decode()
    stub = EnrolmentServiceStub(live.channel("enrolment"))
    message = enrol_request(live, parse_token(token).secret, csr)
    answer = await stub.Enrol(message, timeout=CALL_SECONDS)
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
    assert node_of(certificate, FEDERATION) == "FI"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def test_a_token_used_again_with_its_key_gets_the_first_certificate(live: LiveCoordinator) -> None:
    token, key = await live.invite("FI"), NodeKey()
    first = (await live.enrol(token, key)).certificate_pem
    assert (await live.enrol(token, key)).certificate_pem == first


async def test_a_token_used_with_another_key_is_refused(live: LiveCoordinator) -> None:
    token = await live.invite("FI")
    await live.enrol(token, NodeKey())
    assert await refused(live.enrol(token, NodeKey())) is Reason.ENROLMENT_REFUSED


async def test_a_token_that_has_expired_is_refused(live: LiveCoordinator) -> None:
    token = await live.invite("FI", valid_seconds=60)
    live.clock.shift = timedelta(seconds=61)
    assert await refused(live.enrol(token, NodeKey())) is Reason.ENROLMENT_REFUSED


async def test_unknown_expired_and_taken_tokens_are_told_apart_by_nobody(live: LiveCoordinator) -> None:
    taken = await live.invite("FI")
    await live.enrol(taken, NodeKey())
    replaced = await live.invite("ES")
    await live.invite("ES")
    answers = set()
    for token in (taken, replaced):
        error = await refusal(live.enrol(token, NodeKey()))
        answers.add((error.code(), error.details(), reason_of(error)))
    stub = EnrolmentServiceStub(live.channel("enrolment"))
    error = await refusal(stub.Enrol(enrol_request(live, "x", NodeKey().csr()), timeout=CALL_SECONDS))
    answers.add((error.code(), error.details(), reason_of(error)))
    assert len(answers) == 1


async def test_the_same_invitation_again_is_the_same_token_and_no_secret_is_stored(live: LiveCoordinator) -> None:
    token = await live.invite("FI", request_id="once")
    assert await live.invite("FI", request_id="once") == token
    assert await live.invite("FI", request_id="twice") != token
    secret = parse_token(token).secret.encode()
    folder = Path(str(live.foundation.database.engine.url.database)).parent
    assert all(secret not in file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_a_weak_or_unreadable_key_gets_no_certificate(live: LiveCoordinator) -> None:
    secret = parse_token(await live.invite("FI")).secret
    stub = EnrolmentServiceStub(live.channel("enrolment"))

    def csr_of(key: Any) -> str:
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    good = NodeKey().csr()
    bad = [
        csr_of(rsa.generate_private_key(65537, 2048)),
        csr_of(ec.generate_private_key(ec.SECP224R1())),
        good[:200] + ("B" if good[200] == "A" else "A") + good[201:],
        "",
        "x" * 9000,
    ]
    for csr in bad:
        message = enrol_request(live, secret, csr)
        assert await refused(stub.Enrol(message, timeout=CALL_SECONDS)) is Reason.KEY_INVALID
    assert await states(live) == {"FI": "INVITED"}


async def test_a_node_is_confirmed_only_with_the_fingerprint_of_its_key(live: LiveCoordinator) -> None:
    node_key = await live.enrol(await live.invite("FI"), NodeKey())
    assert await refused(live.confirm("FI", "sha256:" + "0" * 64)) is Reason.FINGERPRINT_MISMATCH
    assert await refused(live.confirm("FI", "")) is Reason.FINGERPRINT_MISMATCH
    assert await states(live) == {"FI": "PENDING_CONFIRMATION"}
    await live.confirm("FI", node_key.fingerprint)


async def test_a_wrong_key_that_got_in_first_is_shut_out_by_a_new_invitation(live: LiveCoordinator) -> None:
    thief = await live.enrol(await live.invite("FI"), NodeKey())
    node_key = await live.enrol(await live.invite("FI"), NodeKey())
    assert await refused(live.confirm("FI", thief.fingerprint)) is Reason.FINGERPRINT_MISMATCH
    await live.confirm("FI", node_key.fingerprint)
    assert await refused(renew(live, thief)) is Reason.CERTIFICATE_REFUSED
    await renew(live, node_key)


async def test_an_admitted_node_is_not_invited_again(live: LiveCoordinator) -> None:
    await live.join("FI")
    assert await refused(live.invite("FI")) is Reason.NODE_EXISTS


@pytest.mark.parametrize("name", ["", "fi", "F I", "FI\n", "A" * 33, "-FI", "FÏ"])
async def test_a_node_has_a_plain_name(live: LiveCoordinator, name: str) -> None:
    assert await refused(live.invite(name)) is Reason.NODE_INVALID


async def test_what_nobody_invited_cannot_be_changed(live: LiveCoordinator) -> None:
    for method in ("ConfirmNode", "SuspendNode", "ResumeNode", "RevokeNode"):
        request = getattr(admin_service_pb2, f"{method}Request")(request_id=method, node="FI")
        if method == "ConfirmNode":
            request.key_fingerprint = "sha256:" + "0" * 64
        assert await refused(live.admin(method, request)) is Reason.NODE_UNKNOWN


async def test_a_suspended_node_is_refused_until_it_is_resumed(live: LiveCoordinator) -> None:
    node_key = await live.join("FI")
    suspend = admin_service_pb2.SuspendNodeRequest(request_id="1", node="FI", reason="maintenance")
    assert (await live.admin("SuspendNode", suspend)).node.reason == "maintenance"
    assert await refused(renew(live, node_key)) is Reason.NODE_SUSPENDED
    await live.two("ResumeNode", admin_service_pb2.ResumeNodeRequest(request_id="2", node="FI"))
    await renew(live, node_key)


async def test_a_revoked_node_is_refused_for_good(live: LiveCoordinator) -> None:
    node_key = await live.join("FI")
    stub = live.node(node_key)
    await stub.RenewCertificate(renewal(), timeout=CALL_SECONDS)
    await live.two("RevokeNode", admin_service_pb2.RevokeNodeRequest(request_id="1", node="FI", reason="left"))
    # The connection of before, and a new one.
    assert await refused(stub.RenewCertificate(renewal(), timeout=CALL_SECONDS)) is Reason.NODE_REVOKED
    assert await refused(renew(live, node_key)) is Reason.NODE_REVOKED
    resume = admin_service_pb2.ResumeNodeRequest(request_id="2", node="FI")
    assert await refused(live.two("ResumeNode", resume)) is Reason.NODE_STATE_CONFLICT
    assert await refused(live.invite("FI")) is Reason.NODE_EXISTS


async def test_a_live_session_ends_when_its_node_is_revoked(live: LiveCoordinator) -> None:
    stream = live.node(await live.join("FI")).Connect()
    hello = node_service_pb2.Hello(protocol=1, instance_id="i", store_uuid="u", generation=1)
    await stream.write(node_service_pb2.NodeFrame(hello=hello))
    assert (await stream.read()).WhichOneof("frame") == "welcome"
    await live.two("RevokeNode", admin_service_pb2.RevokeNodeRequest(request_id="1", node="FI", reason="left"))
    assert await refused(drained(stream)) is Reason.NODE_REVOKED


async def test_a_certificate_that_expired_during_a_connection_is_refused(live: LiveCoordinator) -> None:
    stub = live.node(await live.join("FI"))
    await stub.RenewCertificate(renewal(), timeout=CALL_SECONDS)
    live.clock.shift = timedelta(days=7, seconds=1)
    assert await refused(stub.RenewCertificate(renewal(), timeout=CALL_SECONDS)) is Reason.CERTIFICATE_REFUSED


async def test_certificates_that_do_not_name_exactly_one_node_of_ours_are_refused(live: LiveCoordinator) -> None:
    node_key = await live.join("FI")
    serial = node_key.certificate.serial_number
    ca, ours = live.foundation.keys.node_ca, node_uri(FEDERATION, "FI")
    forgeries = [
        forge(ca, node_key, [ours, node_uri(FEDERATION, "ES")], serial=serial),
        forge(ca, node_key, [ours, ours], serial=serial),
        forge(ca, node_key, [], serial=serial, common_name="FI"),
        forge(ca, node_key, [node_uri("demo.evil", "FI")], serial=serial),
        forge(ca, node_key, [ours + "/"], serial=serial),
        forge(ca, node_key, [ours + "/../ES"], serial=serial),
        forge(ca, node_key, [ours.upper()], serial=serial),
    ]
    for forged in forgeries:
        assert await refused(renew(live, forged)) is Reason.CERTIFICATE_REFUSED


async def test_a_certificate_of_another_node_is_refused(live: LiveCoordinator) -> None:
    fi, es = await live.join("FI"), await live.join("ES")
    ca = live.foundation.keys.node_ca
    # FI's number with ES's name, and a number that was never issued.
    forged = forge(ca, fi, [node_uri(FEDERATION, "ES")], serial=fi.certificate.serial_number)
    assert await refused(renew(live, forged)) is Reason.CERTIFICATE_REFUSED
    assert await refused(renew(live, forge(ca, es, [node_uri(FEDERATION, "ES")]))) is Reason.CERTIFICATE_REFUSED


async def test_certificates_that_the_node_ca_did_not_sign_do_not_get_through_the_handshake(
    live: LiveCoordinator,
) -> None:
    node_key = await live.join("FI")
    uri = [node_uri(FEDERATION, "FI")]
    for ca in (create_authority("other", utc_now()), live.foundation.keys.server_ca):
        stranger = forge(ca, node_key, uri, serial=node_key.certificate.serial_number)
        error = await refusal(renew(live, stranger))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    nobody: Any = live.channel("node").unary_unary("/hansa.v1.NodeService/RenewCertificate")
    assert (await refusal(nobody(b"", timeout=CALL_SECONDS))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_active_on_its_first_use_and_ends_the_one_before(
    live: LiveCoordinator,
) -> None:
    first = await live.join("FI")
    second = await renew(live, first)
    # The answer may have been lost: the first certificate still serves.
    third = await renew(live, first)
    assert await refused(renew(live, second)) is Reason.CERTIFICATE_REFUSED
    await renew(live, third)
    assert await refused(renew(live, first)) is Reason.CERTIFICATE_REFUSED


async def test_a_renewal_repeated_with_its_key_gets_the_same_certificate(live: LiveCoordinator) -> None:
    first, fresh = await live.join("FI"), NodeKey()
    one = (await renew(live, first, fresh)).certificate_pem
    assert (await renew(live, first, fresh)).certificate_pem == one


async def test_a_renewal_needs_a_fresh_key(live: LiveCoordinator) -> None:
    node_key = await live.join("FI")
    await renew(live, node_key)
    assert await refused(renew(live, node_key, NodeKey(node_key.key))) is Reason.KEY_INVALID


async def test_garbage_in_a_stream_is_told_so_and_nothing_more(live: LiveCoordinator) -> None:
    node_key = await live.join("FI")
    chain = node_key.certificate_pem.encode()
    channel = live.channel("node", grpc.ssl_channel_credentials(live.root, node_key.key_pem, chain))
    stream: Any = channel.stream_stream("/hansa.v1.NodeService/Connect")()
    await stream.write(b"\xff\xff\xff")
    error = await refusal(drained(stream))
    assert error.details() == "The request cannot be read."
    assert reason_of(error) is Reason.MALFORMED
    upload: Any = channel.stream_unary("/hansa.v1.NodeService/UploadSummary")
    error = await refusal(upload(iter([b"\xff\xff\xff"]), timeout=CALL_SECONDS))
    assert reason_of(error) is Reason.MALFORMED


async def test_a_nodes_clock_is_compared_with_ours_at_its_heartbeats(live: LiveCoordinator) -> None:
    node = WireNode(live.node(await live.join("FI")), NodeStore())
    await node.attach()
    for ahead in (0, 4000):
        beat = node_service_pb2.Heartbeat(epoch=node.epoch, monotonic_ms=7)
        beat.wall.FromDatetime(live.clock() + timedelta(seconds=ahead))
        await node.send(node_service_pb2.NodeFrame(heartbeat=beat))
        await node.receive("heartbeat_reply")
        clocks = live.foundation.database.run_sync(lambda session: SessionRepository(session).clocks())
        assert abs(clocks["FI"] - ahead) <= 60


async def test_a_time_that_is_none_ends_the_session(live: LiveCoordinator) -> None:
    node = WireNode(live.node(await live.join("FI")), NodeStore())
    await node.attach()
    beat = node_service_pb2.Heartbeat(epoch=node.epoch, monotonic_ms=7)
    beat.wall.seconds = 2**62
    await node.send(node_service_pb2.NodeFrame(heartbeat=beat))
    assert await node.ended() is Reason.PROTOCOL_VIOLATION
