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
from hansa.contract.ids import NodeId
from hansa.contract.outbox import Verdict, judge

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
    changed = settle_all(session, jobs, turn) | Changed(jobs=frozenset(jobs))
    return Applied(event_cursor(row).seq, fault), changed


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


def _apply(session: Session, row: NodeRow, event: Event, turn: Turn) -> set[str]:
    """Apply one event and return the jobs it concerns; a repeat concerns none.

    Everything is checked before anything is written: a refused event leaves
    nothing behind in a transaction that others of its batch go on with.
    """
    if event.epoch != row.epoch:
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The event is of another epoch.")
    cursor = event_cursor(row)
    match judge(cursor, seq=event.seq, prev_hash=event.prev_hash):
        case Verdict.REPEAT:
            return set()
        case Verdict.GAP:
            raise HansaError(Reason.PROTOCOL_VIOLATION, "An event is missing before this one.")
        case Verdict.FORK:
            quarantine_node(session, NodeId(row.node), "the node's events have forked", turn.now)
            raise HansaError(Reason.NODE_QUARANTINED)
        case Verdict.APPLY:
            jobs = _take(session, row.node, event.effect, turn)
            head = cursor.after(event.body)
            EventRepository(session).append(row.node, head, event.body)
            SessionRepository(session).move_cursor(row, head)
            return jobs


def _take(session: Session, node: str, effect: Effect, turn: Turn) -> set[str]:
    match effect:
        case InventoryReported(datasets):
            check_inventory(node, datasets)
            offered = [Dataset(d.dataset_id, node, d.build, d.snapshot) for d in datasets]
            DatasetRepository(session).replace(node, offered)
            return set()
        case RunReported():
            job_id, run = _run_at(session, node, effect.run_id)
            change = run_change(run, effect)
            if change is not None:
                JobRepository(session).change_run(run.run_id, change, turn.now)
            return {job_id}
        case SummaryReleased():
            job_id, run = _run_at(session, node, effect.run_id)
            _announce(session, run, effect)
            return {job_id}


def _run_at(session: Session, node: str, run_id: str) -> tuple[str, RunRecord]:
    found = JobRepository(session).run_of(run_id)
    if found is None:
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The event names a run that is not there.")
    if found[1].node != node:
        raise HansaError(Reason.NODE_MISMATCH, "The event names another node's run.")
    return found


def _announce(session: Session, run: RunRecord, effect: SummaryReleased) -> None:
    if len(effect.digest) != _SHA256_BYTES:
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The summary's digest is not one.")
    if effect.attempt == run.attempt and not JobRepository(session).announce_summary(run.run_id, effect.digest):
        # A node releases one summary per run; the first announcement stands.
        _log.error("summary_announced_twice", run_id=run.run_id, node=run.node)
