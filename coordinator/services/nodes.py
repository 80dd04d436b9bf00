"""Membership of nodes: what the federation operator decides."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from coordinator.domain.membership import NodeEvent, NodeState
from coordinator.store.audit import AuditRepository
from coordinator.store.credentials import CredentialRepository, InvitationRepository
from coordinator.store.nodes import Node, NodeRepository
from hansa.contract.digests import DIGEST
from hansa.contract.enrolment import encode
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NODE_ID, NodeId

DEFAULT_INVITATION: Final = timedelta(minutes=30)
MAX_INVITATION: Final = timedelta(days=7)
# Printable text without line breaks: it is shown in terminals and logs.
_REASON: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]{0,200}")


@dataclass(frozen=True, slots=True)
class Act:
    """Who acts, and when (aware UTC)."""

    actor: str
    now: datetime


def node_name(text: str) -> NodeId:
    """Return ``text`` as a node's name.

    Raises:
        HansaError: ``NODE_INVALID``.
    """
    if not NODE_ID.fullmatch(text):
        raise HansaError(Reason.NODE_INVALID, field="node")
    return NodeId(text)


def invitation_secret(key: bytes, *, caller: str, request_id: str) -> str:
    """Return the secret of the invitation that this request makes.

    It is derived, so that a repeat of the request gives the first token again
    although no secret is stored. A caller uses a request id once, which the
    store of requests enforces.

    Args:
        key: 32 random bytes that only this coordinator has.
        caller: the operator's name, which holds no newline.
        request_id: the request's id.
    """
    text = f"hansa-invitation-v1\n{caller}\n{request_id}".encode()
    return encode(hmac.digest(key, text, hashlib.sha256))


def invitation_life(valid_seconds: int) -> timedelta:
    """Return how long an invitation is valid; 30 minutes for zero.

    Raises:
        HansaError: ``MALFORMED``; over 7 days.
    """
    life = timedelta(seconds=valid_seconds) if valid_seconds else DEFAULT_INVITATION
    if life > MAX_INVITATION:
        raise HansaError(Reason.MALFORMED, "An invitation is valid for at most 7 days.", field="valid_seconds")
    return life


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """An invitation to be made. ``again``: also to a member, for a new certificate of the same node."""

    node: NodeId
    secret: str
    expires_at: datetime
    again: bool = False


def invite_node(session: Session, invite: Invite, act: Act) -> None:
    """Invite a node; an invitation that was made before is worth nothing any more, and no certificate either.

    Of a member that is invited again everything else stays: its store as it is
    known, its runs, its outboxes.

    Raises:
        HansaError: ``NODE_EXISTS``; the node has been confirmed once, and is
            not invited ``again``. ``NODE_UNKNOWN``, ``NODE_STATE_CONFLICT``;
            who is invited again must be an active member.
    """
    node, nodes = invite.node, NodeRepository(session)
    nodes.expire_invitations(act.now)
    known = nodes.find(node)
    if invite.again and (known is None or known.state is NodeState.ACTIVE):
        nodes.apply(node, NodeEvent.INVITE_AGAIN)
    elif known is None:
        nodes.add(node)
    else:
        _replace_invitation(nodes, node, again=invite.again)
    _forget_keys(session, node)
    InvitationRepository(session).replace(node, invite.secret, expires_at=invite.expires_at, inviter=act.actor)
    _record(session, act, "node_invited_again" if invite.again else "node_invited", node)


def _replace_invitation(nodes: NodeRepository, node: NodeId, *, again: bool) -> None:
    try:
        nodes.apply(node, NodeEvent.INVITE)
    except HansaError as error:
        if again:
            raise
        words = "There is a node of this name already; for a new certificate of it, invite it --again."
        raise HansaError(Reason.NODE_EXISTS, words, field="node") from error


def _forget_keys(session: Session, node: NodeId) -> None:
    CredentialRepository(session).revoke_all(node)
    NodeRepository(session).set_key(node, "")


def confirm_node(session: Session, node: NodeId, key_fingerprint: str, act: Act) -> Node:
    """Admit a node whose key the operator has compared with the node's own word.

    Raises:
        HansaError: ``NODE_UNKNOWN``; ``NODE_STATE_CONFLICT``;
            ``FINGERPRINT_MISMATCH``, the enrolled key is another one.
    """
    nodes = NodeRepository(session)
    if not DIGEST.fullmatch(key_fingerprint):
        raise HansaError(Reason.FINGERPRINT_MISMATCH, field="key_fingerprint")
    confirmed = nodes.apply(node, NodeEvent.CONFIRM)
    if not hmac.compare_digest(confirmed.key_fingerprint, key_fingerprint):
        raise HansaError(Reason.FINGERPRINT_MISMATCH, field="key_fingerprint")
    _record(session, act, "node_confirmed", f"{node} {key_fingerprint}")
    return confirmed


def suspend_node(session: Session, node: NodeId, reason: str, act: Act) -> Node:
    """Refuse the node's calls until it is resumed.

    Raises:
        HansaError: ``NODE_UNKNOWN``; ``NODE_STATE_CONFLICT``; ``MALFORMED``.
    """
    suspended = NodeRepository(session).apply(node, NodeEvent.SUSPEND, reason=_words(reason))
    _record(session, act, "node_suspended", because(node, reason))
    return suspended


def resume_node(session: Session, node: NodeId, act: Act) -> Node:
    """Admit a suspended or quarantined node again.

    Raises:
        HansaError: ``NODE_UNKNOWN``; ``NODE_STATE_CONFLICT``.
    """
    resumed = NodeRepository(session).apply(node, NodeEvent.RESUME)
    _record(session, act, "node_resumed", node)
    return resumed


def revoke_node(session: Session, node: NodeId, reason: str, act: Act) -> Node:
    """End the node's membership for good.

    Raises:
        HansaError: ``NODE_UNKNOWN``; ``NODE_STATE_CONFLICT``; ``MALFORMED``.
    """
    revoked = NodeRepository(session).apply(node, NodeEvent.REVOKE, reason=_words(reason))
    CredentialRepository(session).revoke_all(node)
    InvitationRepository(session).drop(node)
    _record(session, act, "node_revoked", because(node, reason))
    return revoked


def quarantine_node(session: Session, node: NodeId, reason: str, now: datetime) -> Node:
    """Set a node apart whose store does not continue what is known of it.

    Raises:
        HansaError: ``NODE_UNKNOWN``; ``NODE_STATE_CONFLICT``.
    """
    node_apart = NodeRepository(session).apply(node, NodeEvent.QUARANTINE, reason=reason)
    _record(session, Act("coordinator", now), "node_quarantined", because(node, reason))
    return node_apart


def _words(reason: str) -> str:
    if not _REASON.fullmatch(reason):
        raise HansaError(Reason.MALFORMED, "A reason is at most 200 printable characters on one line.", field="reason")
    return reason


def because(node: str, reason: str) -> str:
    """Return what an act on a node was about, for people."""
    return f"{node}: {reason}" if reason else node


def _record(session: Session, act: Act, action: str, subject: str) -> None:
    AuditRepository(session).append(at=act.now, actor=act.actor, action=action, subject=subject)
