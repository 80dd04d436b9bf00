"""The transactions at the two ends of a node's session."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.attachment import check_hello, check_proof, heads_fault, store_fault
from coordinator.domain.frames import HeadProof, Hello, Welcome
from coordinator.domain.membership import check_admitted
from coordinator.services.desk import Changed, Turn
from coordinator.services.nodes import quarantine_node
from coordinator.services.reports import standing_under
from coordinator.store.federation import read_federation
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository
from coordinator.store.sessions import SessionRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.limits import SESSION_SILENCE

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """What came of an attach step: a welcome, or the reason of a quarantine.

    A quarantine is a value and no exception, because it is committed.
    """

    welcome: Welcome | None = None
    quarantined: str = ""


def greet(session: Session, node: NodeId, hello: Hello, *, nonce: bytes, turn: Turn) -> tuple[Standing, Changed]:
    """Open a new epoch for the node, which fences its older sessions.

    Raises:
        HansaError: ``VERSION_UNSUPPORTED``, ``PROTOCOL_VIOLATION``, or what
            the node's state says.
    """
    check_hello(hello)
    sessions = SessionRepository(session)
    standing = sessions.standing(node)
    check_admitted(standing.state)
    fault = store_fault(standing.store, hello)
    if fault:
        return _quarantine(session, node, fault, turn), Changed()
    federation = read_federation(session)
    if federation is None:
        raise HansaError(Reason.INTERNAL, log="the store has no federation")
    epoch = standing.epoch + 1
    sessions.open_epoch(node, epoch, hello)
    welcome = Welcome(
        epoch=epoch,
        nonce=nonce,
        store_uuid=federation.store_uuid,
        generation=federation.generation,
        event_cursor=standing.store.event_cursor,
        command_head=CommandRepository(session).head(node),
        wall=turn.now,
    )
    return Standing(welcome), Changed()


def connect(
    session: Session, node: NodeId, proof: HeadProof, *, welcome: Welcome, turn: Turn
) -> tuple[Standing, Changed]:
    """Compare both outboxes under the new epoch; the node is connected if they agree.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``, another welcome was answered;
            ``EPOCH_FENCED``; or what the node's state says.
    """
    check_proof(proof, epoch=welcome.epoch, nonce=welcome.nonce)
    standing = standing_under(session, node, welcome.epoch)
    commands = CommandRepository(session)
    fault = heads_fault(
        proof,
        event_cursor=standing.store.event_cursor,
        command_head=commands.head(node),
        command_hash_at_cursor=commands.hash_at(node, proof.command_cursor.seq),
    )
    if fault:
        return _quarantine(session, node, fault, turn), Changed()
    commands.acknowledge(node, proof.command_cursor.seq, turn.now)
    commands.owe(node, after=proof.command_cursor.seq)
    SessionRepository(session).connect(node, turn.now)
    return Standing(welcome), _seen(session, node)


def disconnect(session: Session, node: NodeId, epoch: int, turn: Turn) -> tuple[None, Changed]:
    """Write that the session of ``epoch`` is over; nothing if a newer one stands."""
    SessionRepository(session).disconnect(node, epoch, turn.now)
    return None, _seen(session, node) | _gone(turn)


def disconnect_all(session: Session, turn: Turn) -> tuple[None, Changed]:
    """Write that no node is connected: what a coordinator knows that has just started."""
    SessionRepository(session).disconnect_all(turn.now)
    return None, _gone(turn)


def _gone(turn: Turn) -> Changed:
    return Changed(due=turn.now + SESSION_SILENCE)


def _seen(session: Session, node: NodeId) -> Changed:
    return Changed(jobs=frozenset(JobRepository(session).open_jobs_of([node])))


def _quarantine(session: Session, node: NodeId, fault: str, turn: Turn) -> Standing:
    _log.error("node_quarantined", node=node, cause=fault)
    quarantine_node(session, node, fault, turn.now)
    return Standing(quarantined=fault)
