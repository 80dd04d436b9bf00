"""The transactions at the two ends of a node's session."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.attachment import check_hello, check_proof
from coordinator.domain.frames import HeadProof, Hello, Welcome
from coordinator.domain.membership import check_admitted
from coordinator.services.desk import Changed, Turn
from coordinator.services.nodes import quarantine_node
from coordinator.services.reconciliation import tell_recorded
from coordinator.services.reports import standing_under
from coordinator.store.federation import read_federation
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository
from coordinator.store.sessions import SessionRepository
from hansa.contract.attach import (
    Proof,
    coordinator_lost_commands,
    next_epoch,
    node_lost_commands,
    node_lost_events,
    store_fault,
)
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
    fault = store_fault(standing.store, uuid=hello.store_uuid, generation=hello.generation)
    if fault:
        return _quarantine(session, node, fault, turn), Changed()
    federation = read_federation(session)
    if federation is None:
        raise HansaError(Reason.INTERNAL, log="the store has no federation")
    epoch = next_epoch(standing.epoch, federation.generation)
    sessions.open_epoch(node, epoch, hello)
    if hello.store_uuid != standing.store.uuid:
        CommandRepository(session).owe(node, after=0)
    if standing.store.reconciling:
        tell_recorded(session, node, hello.generation, turn)
    commands = CommandRepository(session)
    welcome = Welcome(
        epoch=epoch,
        nonce=nonce,
        store_uuid=federation.store_uuid,
        generation=federation.generation,
        event_cursor=standing.store.event_cursor,
        command_head=commands.head(node),
        command_base=commands.base(node),
        wall=turn.now,
    )
    return Standing(welcome), Changed()


def connect(
    session: Session, node: NodeId, proof: HeadProof, *, welcome: Welcome, turn: Turn
) -> tuple[Standing, Changed]:
    """Compare both outboxes under the new epoch; the node is connected if they agree.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``, another welcome was answered;
            ``COORDINATOR_BEHIND``, the node has applied commands that are not
            here; ``EPOCH_FENCED``; or what the node's state says.
    """
    check_proof(proof, epoch=welcome.epoch, nonce=welcome.nonce)
    standing = standing_under(session, node, welcome.epoch)
    commands = CommandRepository(session)
    shown = Proof(
        event_head=proof.event_head,
        hash_at_event_cursor=proof.hash_at_event_cursor,
        command_cursor=proof.command_cursor,
    )
    if node_lost_events(shown, standing.store.event_cursor):
        return _quarantine(session, node, "the node's events do not continue what was received", turn), Changed()
    if node_lost_commands(shown, commands.base(node)):
        return _quarantine(session, node, "the node has forgotten commands that it had acknowledged", turn), Changed()
    hash_here = commands.hash_at(node, proof.command_cursor.seq)
    if coordinator_lost_commands(shown, commands.head(node), hash_here):
        # We are the ones who have forgotten: a copy of the store was put back by hand.
        _log.error("own_outbox_behind", node=node, node_seq=proof.command_cursor.seq)
        raise HansaError(Reason.COORDINATOR_BEHIND)
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
