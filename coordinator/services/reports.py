"""What nodes report: events applied once each, in order, in one transaction a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.frames import Effect, Event, InventoryReported, RunReported, SummaryReleased
from coordinator.domain.membership import NodeState, check_admitted
from coordinator.domain.records import RunRecord
from coordinator.domain.reports import check_inventory, run_change
from coordinator.services.desk import Changed, Turn
from coordinator.services.evaluation import settle_all
from coordinator.services.nodes import quarantine_node
from coordinator.store.catalogue import Dataset, DatasetRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository, EventRepository
from coordinator.store.people_models import NodeRow
from coordinator.store.sessions import SessionRepository, event_cursor
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head, Verdict, judge

_log = structlog.get_logger(__name__)

_SHA256_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames of one session that came together. ``acked``: commands applied, if the node said so."""

    node: str
    epoch: int
    events: Sequence[Event]
    acked: int | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """How far the node's events are applied, and what ends the session, if anything does."""

    upto_seq: int
    fault: HansaError | None = None


def apply_batch(session: Session, batch: Batch, turn: Turn) -> tuple[Applied, Changed]:
    """Apply what the node sent; everything before the first faulty event stays applied.

    Raises:
        HansaError: ``EPOCH_FENCED``, another session has taken over; or what
            the node's state says. Nothing was applied.
    """
    sessions = SessionRepository(session)
    row = locked_under(session, batch.node, batch.epoch)
    jobs: set[str] = set()
    fault = None
    for event in batch.events:
        try:
            jobs |= _apply(session, row, event, turn)
        except HansaError as error:
            fault = error
            _log.warning("event_refused", node=batch.node, seq=event.seq, reason=error.reason.value, detail=str(error))
            break
    if batch.acked is not None:
        CommandRepository(session).acknowledge(batch.node, batch.acked)
    session.flush()
    changed = settle_all(session, jobs, turn) | Changed(jobs=frozenset(jobs))
    return Applied(sessions_cursor(row).seq, fault), changed


def locked_under(session: Session, node: str, epoch: int) -> NodeRow:
    """Return the node's row, locked, if the session of ``epoch`` still stands.

    Raises:
        HansaError: ``EPOCH_FENCED``, or what the node's state says.
    """
    row = SessionRepository(session).lock(node)
    if row.epoch != epoch:
        raise HansaError(Reason.EPOCH_FENCED)
    check_admitted(NodeState(row.state))
    return row
