"""Invitations and certificates of nodes. Works inside the caller's transaction and never commits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from coordinator.domain.membership import CredentialState
from coordinator.store.people_models import CredentialRow, InvitationRow
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId

_STANDING = (CredentialState.PENDING, CredentialState.ACTIVE)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate that was issued to a node."""

    serial: str
    node: NodeId
    state: CredentialState
    not_after: datetime
    key_fingerprint: str
    certificate_pem: str


class InvitationRepository:
    """Invitations by the SHA-256 of their secret; the secret itself is never stored."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def replace(self, node: NodeId, secret: str, *, expires_at: datetime, inviter: str) -> None:
        """Make ``secret`` the node's one invitation."""
        self._session.execute(delete(InvitationRow).where(InvitationRow.node == node))
        self._session.add(
            InvitationRow(digest=_digest(secret), node=node, expires_at=expires_at, redeemed_by=None, inviter=inviter)
        )
        self._session.flush()

    def redeem(self, secret: str, *, key_fingerprint: str, now: datetime) -> NodeId:
        """Bind ``secret`` to one public key and return the id of its node.

        The same key may redeem again until the invitation expires: a node
        whose first reply was lost asks once more and must not be locked out.

        Raises:
            HansaError: ``ENROLMENT_REFUSED``; unknown, expired, or bound to
                another key. One error for the three, so that guessing teaches
                nothing.
        """
        # One statement, not a read and then a write: two keys presenting one
        # secret at the same moment must not both get in.
        node = self._session.scalar(
            update(InvitationRow)
            .where(
                InvitationRow.digest == _digest(secret),
                InvitationRow.expires_at > now,
                or_(InvitationRow.redeemed_by.is_(None), InvitationRow.redeemed_by == key_fingerprint),
            )
            .values(redeemed_by=key_fingerprint)
            .returning(InvitationRow.node)
        )
        if node is None:
            raise HansaError(Reason.ENROLMENT_REFUSED)
        return NodeId(node)

    def drop(self, node: str) -> None:
        """Take the node's invitation back, if it has one."""
        self._session.execute(delete(InvitationRow).where(InvitationRow.node == node))


class CredentialRepository:
    """Certificates by serial number (hexadecimal, lower case)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, serial: str) -> Credential | None:
        """Return the certificate of this number, if one was issued."""
        row = self._session.get(CredentialRow, serial)
        return None if row is None else _credential(row)

    def standing(self, node: str, *, key_fingerprint: str) -> Credential | None:
        """Return the node's pending or active certificate for this key."""
        row = self._session.scalar(
            select(CredentialRow).where(
                CredentialRow.node == node,
                CredentialRow.key_fingerprint == key_fingerprint,
                CredentialRow.state.in_(_STANDING),
            )
        )
        return None if row is None else _credential(row)

    def add_pending(self, credential: Credential, now: datetime) -> None:
        """Store a new certificate; a pending one before it is superseded.

        A node that asks twice has lost the first answer, and its key with it.
        """
        self._move(credential.node, CredentialState.PENDING, CredentialState.SUPERSEDED)
        self._session.add(
            CredentialRow(
                serial=credential.serial,
                node=credential.node,
                state=CredentialState.PENDING,
                not_after=credential.not_after,
                key_fingerprint=credential.key_fingerprint,
                certificate_pem=credential.certificate_pem,
                issued_at=now,
            )
        )
        self._session.flush()

    def activate(self, credential: Credential) -> None:
        """Make a pending certificate the active one; the one before is superseded."""
        self._move(credential.node, CredentialState.ACTIVE, CredentialState.SUPERSEDED)
        self._session.execute(
            update(CredentialRow).where(CredentialRow.serial == credential.serial).values(state=CredentialState.ACTIVE)
        )

    def revoke_all(self, node: str) -> None:
        """Revoke every standing certificate of the node."""
        for state in _STANDING:
            self._move(node, state, CredentialState.REVOKED)

    def _move(self, node: str, old: CredentialState, new: CredentialState) -> None:
        self._session.execute(
            update(CredentialRow).where(CredentialRow.node == node, CredentialRow.state == old).values(state=new)
        )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _credential(row: CredentialRow) -> Credential:
    return Credential(
        row.serial,
        NodeId(row.node),
        CredentialState(row.state),
        row.not_after,
        row.key_fingerprint,
        row.certificate_pem,
    )
