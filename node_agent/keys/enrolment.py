"""How a node joins: an invitation becomes a certificate.

Nothing is sent before the server has proved that it is the one the invitation
was made at: the token carries the fingerprint of its CA, the server shows its
chain, and only the certificate with that fingerprint becomes the root against
which the server is then verified. The token also carries the digest of the
trust repository's root metadata, which the server hands over and which the
node pins. There is no trust on first use.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self, cast

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from hansa.contract.enrolment import Invitation, parse_token
from hansa.contract.errors import DOMAIN, HansaError, Reason
from hansa.contract.identity import node_of
from hansa.runtime.channels import CLIENT_OPTIONS
from hansa.v1 import enrolment_service_pb2, enrolment_service_pb2_grpc
from node_agent.config import (
    PINNED_ROOT,
    AgentConfig,
    StateFolder,
    config_text,
    load_config,
    load_settings,
    lock_state_folder,
)
from node_agent.durable import write_durably
from node_agent.keys.credential import (
    SERVER_CA,
    Credential,
    checked_credential,
    fresh_key,
    is_enrolled,
    key_fingerprint,
    load_server_ca,
    pending_key,
    signing_request,
    store_credential,
)
from node_agent.keys.identity import make_identity

_log = structlog.get_logger(__name__)

_PATIENCE_SECONDS: Final = 20.0
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class EnrolmentOutcome:
    """What enrolment gave; the operator compares ``fingerprint`` before confirming."""

    node: str
    federation: str
    fingerprint: str
    node_endpoint: str

    @classmethod
    def of(cls, config: AgentConfig, key_pem: bytes) -> Self:
        """Return the outcome for a node with this key."""
        return cls(config.node, config.federation, key_fingerprint(key_pem), config.node_endpoint)


@dataclass(frozen=True, slots=True)
class _Grant:
    credential: Credential
    server_ca_pem: bytes
    trust_root: bytes
    config: AgentConfig


def enrol(token: str, state: StateFolder) -> EnrolmentOutcome:
    """Make the node's keys, get its certificate with ``token``, and store all with the pinned root of trust.

    May be repeated with the same token until it has succeeded: the keys are
    stored before the first request and used again.

    Raises:
        HansaError: ``ENROLMENT_REFUSED``, ``FINGERPRINT_MISMATCH``,
            ``COORDINATOR_UNREACHABLE``; ``NODE_STATE_CONFLICT`` when the
            folder is enrolled already; ``AGENT_RUNNING``.
    """
    invitation = parse_token(token)
    # Before the lock, too: the agent of an enrolled node may well run.
    _check_new(state)
    with lock_state_folder(state):
        _check_new(state)
        root = pinned_root(invitation)
        make_identity(state)
        key_pem = pending_key(state)
        reply = _ask(invitation, root, signing_request(key_pem))
        grant = _checked(reply, invitation, key_pem, state)
        # The credential comes last: with it the node counts as enrolled, and all else is there.
        write_durably(state.keys / SERVER_CA, grant.server_ca_pem, mode=0o644)
        state.trust.mkdir(mode=0o700, exist_ok=True)
        write_durably(state.trust / PINNED_ROOT, grant.trust_root)
        write_durably(state.config_file, config_text(grant.config).encode())
        store_credential(state, grant.credential)
    outcome = EnrolmentOutcome.of(grant.config, key_pem)
    _log.info("node_enrolled", node=outcome.node, key_fingerprint=outcome.fingerprint)
    return outcome


def _check_new(state: StateFolder) -> None:
    if is_enrolled(state):
        raise HansaError(
            Reason.NODE_STATE_CONFLICT,
            f"State folder {state.path} is enrolled already; use a new one for another node, "
            "and --again for a new certificate of this one.",
            field="state",
        )


def enrol_again(token: str, state: StateFolder) -> EnrolmentOutcome:
    """Get a new certificate for the same node, whose own has expired or is refused.

    Nothing else changes: neither the store with its runs and outbox, nor the
    node's own keys, nor what it trusts. The agent may run meanwhile; it takes
    the certificate up with its next session.

    Raises:
        HansaError: ``NODE_STATE_CONFLICT``, the folder is no node's, or not of
            the invited one; ``FINGERPRINT_MISMATCH``, the invitation is of
            another coordinator or another root of trust than the node has
            pinned, and nothing was sent; else as ``enrol``.
    """
    invitation = parse_token(token)
    if not is_enrolled(state):
        raise HansaError(Reason.NODE_STATE_CONFLICT, f"State folder {state.path} is not enrolled yet.", field="state")
    config = load_config(state)
    if invitation.node != config.node:
        words = f"State folder {state.path} is {config.node}'s, the invitation {invitation.node}'s."
        raise HansaError(Reason.NODE_STATE_CONFLICT, words, field="state")
    _check_pinned(invitation, state)
    key_pem = fresh_key(state)
    reply = _ask(invitation, pinned_root(invitation), signing_request(key_pem))
    grant = _checked(reply, invitation, key_pem, state)
    if grant.config.federation != config.federation:
        raise _odd_reply("another federation")
    store_credential(state, grant.credential)
    outcome = EnrolmentOutcome.of(config, key_pem)
    _log.info("node_enrolled_again", node=outcome.node, key_fingerprint=outcome.fingerprint)
    return outcome


def _check_pinned(invitation: Invitation, state: StateFolder) -> None:
    """Return if the invitation is of the coordinator and the root of trust that the node knows.

    Whoever could talk an operator into a token could else put the node, with
    its data and its history, under another authority.
    """
    try:
        root = (state.trust / PINNED_ROOT).read_bytes()
    except OSError as error:
        raise HansaError(Reason.CONFIG_INVALID, f"trust/{PINNED_ROOT} cannot be read.", log=str(error)) from error
    pinned = (_fingerprint(load_server_ca(state)), hashlib.sha256(root).digest())
    if pinned != (invitation.ca_fingerprint, invitation.trust_root_digest):
        raise HansaError(
            Reason.FINGERPRINT_MISMATCH,
            "The invitation is of another coordinator or root of trust than this node has pinned; nothing was sent.",
            field="token",
        )


def pinned_root(invitation: Invitation) -> bytes:
    """Return (PEM) the CA of the invitation, from a server that it does verify.

    Raises:
        HansaError: ``FINGERPRINT_MISMATCH``; the server does not show that CA,
            or shows it and is not certified by it. ``COORDINATOR_UNREACHABLE``.
    """
    try:
        chain = _shown_chain(invitation.endpoint)
        root = next((der for der in chain if hashlib.sha256(der).digest() == invitation.ca_fingerprint), None)
        if root is None:
            raise _not_the_inviter(invitation)
        pem = ssl.DER_cert_to_PEM_cert(root)
        _handshake(invitation.endpoint, pem)
    except ssl.SSLCertVerificationError as error:
        raise _not_the_inviter(invitation, str(error)) from error
    except OSError as error:
        raise HansaError(
            Reason.COORDINATOR_UNREACHABLE,
            f"The enrolment server at {invitation.endpoint} cannot be reached.",
            log=str(error),
        ) from error
    return pem.encode()


def _not_the_inviter(invitation: Invitation, log: str = "") -> HansaError:
    return HansaError(
        Reason.FINGERPRINT_MISMATCH,
        f"The server at {invitation.endpoint} is not the one that made this invitation; nothing was sent to it.",
        field="token",
        log=log,
    )


def _shown_chain(endpoint: str) -> Sequence[bytes]:
    """Return the certificates (DER) that the server shows. They prove nothing yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connect(endpoint, context) as tls:
        # Public since Python 3.13; the private object has had it since 3.10.
        public = getattr(tls, "get_unverified_chain", None)
        if public is not None:
            return list(public())
        inner: Any = getattr(tls, "_sslobj")  # noqa: B009 - private, see above
        return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in inner.get_unverified_chain()]


def _handshake(endpoint: str, root_pem: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root_pem)
    with _connect(endpoint, context):
        pass


def _connect(endpoint: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS)
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _ask(invitation: Invitation, root: bytes, request_pem: bytes) -> enrolment_service_pb2.EnrolResponse:
    credentials = grpc.ssl_channel_credentials(root_certificates=root)
    request = enrolment_service_pb2.EnrolRequest(
        token_secret=invitation.secret,
        csr_pem=request_pem.decode(),
        trust_root_digest=invitation.trust_root_digest,
    )
    with grpc.secure_channel(invitation.endpoint, credentials, options=list(CLIENT_OPTIONS)) as channel:
        stub = enrolment_service_pb2_grpc.EnrolmentServiceStub(channel)
        try:
            return stub.Enrol(request, timeout=_PATIENCE_SECONDS)
        except grpc.RpcError as error:
            raise _refusal(error, invitation.endpoint) from error


def _refusal(error: grpc.RpcError, endpoint: str) -> HansaError:
    # What a blocking stub raises is a Call too; the stubs do not say so.
    status = rpc_status.from_call(cast("grpc.Call", error))
    for detail in () if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in Reason.__members__:
            return HansaError(Reason(info.reason), status.message, field="token")
    return HansaError(
        Reason.COORDINATOR_UNREACHABLE, f"The enrolment server at {endpoint} does not answer.", log=str(error)
    )


def _checked(
    reply: enrolment_service_pb2.EnrolResponse, invitation: Invitation, key_pem: bytes, state: StateFolder
) -> _Grant:
    """Return the reply if it is what we asked for."""
    settings = asdict(load_settings(state))
    try:
        credential = checked_credential(key_pem, reply.certificate_pem.encode())
        config = AgentConfig(
            **settings, federation=reply.federation, node=invitation.node, node_endpoint=reply.node_endpoint
        )
        named = node_of(credential.certificate, config.federation)
        trusted = _CERTIFICATE.findall(reply.server_ca_pem.encode())
        if [_fingerprint(pem) for pem in trusted] != [invitation.ca_fingerprint]:
            # One more would be trusted for ever, also after the coordinator that slipped it in was recovered.
            raise ValueError("server_ca_pem is not the invitation's CA, and it alone")
    except (ValueError, HansaError) as error:
        raise _odd_reply(str(error)) from error
    if named != invitation.node or reply.node != invitation.node:
        raise HansaError(Reason.NODE_MISMATCH, field="token")
    if reply.key_fingerprint != key_fingerprint(key_pem):
        raise _odd_reply("another key's fingerprint")
    if hashlib.sha256(reply.trust_root).digest() != invitation.trust_root_digest:
        raise HansaError(
            Reason.FINGERPRINT_MISMATCH,
            "The server's root of trust is not the one that the invitation names; nothing was pinned.",
            field="token",
        )
    return _Grant(credential, trusted[0], reply.trust_root, config)


def _fingerprint(pem: bytes) -> bytes:
    certificate = x509.load_pem_x509_certificate(pem)
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def _odd_reply(log: str) -> HansaError:
    return HansaError(
        Reason.ENROLMENT_REFUSED, "The enrolment server's answer does not fit this node's request.", log=log
    )
