"""How a node gets its certificates, and whether one admits a call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.orm import Session

from coordinator.ca.authority import Authority, Window, issue_node
from coordinator.ca.csr import key_fingerprint, public_key_of
from coordinator.domain.membership import CredentialState, NodeEvent, NodeState, check_admitted
from coordinator.store.audit import AuditRepository
from coordinator.store.credentials import Credential, CredentialRepository, InvitationRepository
from coordinator.store.nodes import NodeRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.identity import node_of
from hansa.contract.ids import NodeId


@dataclass(frozen=True, slots=True)
class Issuer:
    """What certificates of nodes are made with."""

    node_ca: Authority
    federation: str
    life: timedelta


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A node that has shown its invitation; it is not confirmed yet."""

    node: NodeId
    certificate_pem: str
    key_fingerprint: str


def enrol_node(session: Session, issuer: Issuer, *, secret: str, csr_pem: str, now: datetime) -> Enrolled:
    """Redeem an invitation and issue the node's first certificate.

    The same secret with the same key returns the same certificate.

    Raises:
        HansaError: ``KEY_INVALID``; ``ENROLMENT_REFUSED``, one answer for an
            invitation that is unknown, expired, or bound to another key.
    """
    key = public_key_of(csr_pem)
    fingerprint = key_fingerprint(key)
    node = InvitationRepository(session).redeem(secret, key_fingerprint=fingerprint, now=now)
    issued = CredentialRepository(session).standing(node, key_fingerprint=fingerprint)
    if issued is None:
        issued = _admit(session, issuer, node, key, now)
    return Enrolled(node, issued.certificate_pem, fingerprint)


def _admit(session: Session, issuer: Issuer, node: NodeId, key: ec.EllipticCurvePublicKey, now: datetime) -> Credential:
    nodes = NodeRepository(session)
    try:
        nodes.apply(node, NodeEvent.REDEEM)
    except HansaError as error:
        raise HansaError(Reason.ENROLMENT_REFUSED, log=str(error)) from error
    issued = _issue(session, issuer, node, key, now)
    nodes.set_key(node, issued.key_fingerprint)
    subject = f"{node} {issued.key_fingerprint}"
    AuditRepository(session).append(
        at=now, actor=f"node:{node}", action="node_enrolled", subject=subject, facts=_logged(issued)
    )
    return issued


def renew_certificate(session: Session, issuer: Issuer, *, node: NodeId, csr_pem: str, now: datetime) -> str:
    """Return (PEM) a new certificate for ``node``; it is active on its first use.

    The same key returns the same certificate; another key replaces one that
    was never used, since its answer was lost.

    Raises:
        HansaError: ``KEY_INVALID``; also for the key of the certificate in
            use, because each certificate has a key of its own.
    """
    key = public_key_of(csr_pem)
    fingerprint = key_fingerprint(key)
    standing = CredentialRepository(session).standing(node, key_fingerprint=fingerprint)
    if standing is None:
        issued = _issue(session, issuer, node, key, now)
        AuditRepository(session).append(
            at=now,
            actor=f"node:{node}",
            action="certificate_renewed",
            subject=f"{node} {fingerprint}",
            facts=_logged(issued),
        )
        return issued.certificate_pem
    if standing.state is CredentialState.ACTIVE:
        raise HansaError(Reason.KEY_INVALID, "A renewal needs a fresh key.", field="csr_pem")
    return standing.certificate_pem


def _logged(issued: Credential) -> dict[str, str | int]:
    """Return what stays in the log for good of each certificate that was ever issued."""
    return {"node": issued.node, "serial": issued.serial, "key": issued.key_fingerprint}


def _issue(session: Session, issuer: Issuer, node: NodeId, key: ec.EllipticCurvePublicKey, now: datetime) -> Credential:
    window = Window(now, issuer.life)
    certificate = issue_node(issuer.node_ca, key, federation=issuer.federation, node=node, window=window)
    credential = Credential(
        serial=_serial(certificate),
        node=node,
        state=CredentialState.PENDING,
        not_after=window.not_after,
        key_fingerprint=key_fingerprint(key),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
    )
    CredentialRepository(session).add_pending(credential, now)
    return credential


def identify_node(session: Session, certificate_pem: bytes, *, federation: str, now: datetime) -> Credential:
    """Return the credential behind a call, and make it the active one on its first use.

    TLS checked the certificate when the connection was made; a resumed or an
    old connection would outlive expiry and revocation. So each call is
    checked: 1. it names one node of this federation, 2. its serial was issued
    to that node and stands, 3. it has not expired, 4. the node is active.

    Raises:
        HansaError: ``CERTIFICATE_REFUSED``, or what the node's state says.
    """
    certificate = _parse(certificate_pem)
    named = node_of(certificate, federation)
    credentials = CredentialRepository(session)
    credential = credentials.get(_serial(certificate))
    if credential is None or credential.node != named:
        raise HansaError(Reason.CERTIFICATE_REFUSED, log="no such serial at this node")
    state = NodeRepository(session).get(named).state
    if state is NodeState.REVOKED:
        # Told before the credential's own state: the agent stops for good.
        check_admitted(state)
    if credential.state not in {CredentialState.PENDING, CredentialState.ACTIVE}:
        raise HansaError(Reason.CERTIFICATE_REFUSED, log=f"credential is {credential.state}")
    if now >= min(credential.not_after, certificate.not_valid_after_utc) or now < certificate.not_valid_before_utc:
        raise HansaError(Reason.CERTIFICATE_REFUSED, "The certificate has expired.", log="outside of its validity")
    check_admitted(state)
    if credential.state is CredentialState.PENDING:
        credentials.activate(credential)
        NodeRepository(session).set_key(named, credential.key_fingerprint)
    return credential


def _parse(certificate_pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate_pem)
    except (ValueError, TypeError) as error:
        raise HansaError(Reason.CERTIFICATE_REFUSED, log="unreadable certificate") from error


def _serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:040x}"
