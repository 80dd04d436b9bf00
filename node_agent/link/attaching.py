"""The transaction with which a node answers a welcome: how it goes on with this coordinator.

Three things can have happened since the last time. Nothing: the heads are
shown, and the coordinator compares. The coordinator's store was restored: it is
told again what it may have forgotten, all of it where the events of that time
are not kept here any more. Our own store was restored: what it would
tell is not to be trusted, so it begins anew behind what the coordinator has
received, and waits until it is told what it has forgotten itself.
"""

from __future__ import annotations

from datetime import datetime

import structlog
from sqlalchemy.orm import Session

from hansa.contract.attach import CoordinatorTold, Course, begins_anew, command_cursor, course
from hansa.v1 import node_service_pb2
from node_agent.audit.entries import coordinator_restored
from node_agent.audit.log import append
from node_agent.link.encoding import head_message, head_of
from node_agent.reporting import Reporter
from node_agent.store.outbox import (
    begin_anew,
    coordinator_seen,
    event_head,
    hash_at,
    is_reconciled,
    keep_coordinator,
    store_row,
)
from node_agent.telling import tell_everything

_log = structlog.get_logger(__name__)


def answer_welcome(
    session: Session, welcome: node_service_pb2.Welcome, reporter: Reporter, now: datetime
) -> node_service_pb2.HeadProof:
    """Return the proof for the coordinator that sent ``welcome``.

    Raises:
        HansaError: ``COORDINATOR_BEHIND`` or ``PROTOCOL_VIOLATION``; nothing
            of its will be applied.
    """
    seen, told = coordinator_seen(session), _told(welcome)
    way = course(seen, told)
    reconciled = is_reconciled(session)
    if not reconciled:
        _log.warning("attached_unreconciled", generation=store_row(session).generation)
    cursor, head = told.event_cursor, event_head(session)
    if begins_anew(way, reconciled=reconciled, cursor=cursor, head=head, hash_at_cursor=hash_at(session, cursor.seq)):
        begin_anew(session, cursor)
    restored = way is Course.TELL_AGAIN or not reconciled
    keep_coordinator(session, told, command_cursor(seen, told, restored=restored))
    if way is Course.TELL_AGAIN:
        _log.warning("coordinator_restored", generation=told.generation, command_base=told.command_base.seq)
        append(session, coordinator_restored(told.generation), now)
        tell_everything(session, reporter, now, with_jobs=True)
    return node_service_pb2.HeadProof(
        epoch=welcome.epoch,
        nonce=welcome.nonce,
        event_head=head_message(event_head(session)),
        hash_at_event_cursor=hash_at(session, told.event_cursor.seq),
        command_cursor=head_message(coordinator_seen(session).commands),
    )


def _told(welcome: node_service_pb2.Welcome) -> CoordinatorTold:
    return CoordinatorTold(
        uuid=welcome.store_uuid,
        generation=welcome.generation,
        event_cursor=head_of(welcome.event_cursor),
        command_head=head_of(welcome.command_head),
        command_base=head_of(welcome.command_base),
    )
