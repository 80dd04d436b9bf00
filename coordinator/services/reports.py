"""What nodes report: events applied once each, in order, in one transaction a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.evaluation import may_end_a_job
from coordinator.domain.frames import (
    Effect,
    Event,
    InventoryReported,
    JobReported,
    ReleaseLogged,
    RunReported,
    SummaryReleased,
)
from coordinator.domain.membership import check_admitted
from coordinator.domain.records import RunRecord
from coordinator.domain.reports import check_inventory, run_change
from coordinator.services.desk import Changed, Turn
from coordinator.services.evaluation import settle_all
from coordinator.services.nodes import quarantine_node
from coordinator.services.recall import is_restored, recall_job
from coordinator.services.statements import set_apart, take_statement
from coordinator.store.catalogue import Dataset, DatasetRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository, EventRepository
from coordinator.store.sessions import NodeStanding, SessionRepository
from coordinator.store.witnesses import ReleaseProof, ReleaseProofRepository
from hansa.contract.attach import check_epoch, check_standing
from hansa.contract.delivery import Receiver
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.log_evidence import MOST_ENTRY_BYTES
from hansa.contract.merkle import leaf_hash, verify_inclusion
from hansa.contract.notes import check_proof, parse_note
from hansa.contract.outbox import Head, Verdict
from hansa.contract.states import RunState

_log = structlog.get_logger(__name__)

_OfRun = RunReported | SummaryReleased | ReleaseLogged


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


@dataclass(slots=True)
class _Progress:
    """What a batch has come to so far; written down at its end."""

    node: str
    epoch: int
    receiver: Receiver
    runs: dict[str, tuple[str, RunRecord]]
    changed: set[str] = field(default_factory=set)
    received: list[tuple[Head, bytes]] = field(default_factory=list)
    # Jobs whose watchers are told; those of them that may have ended by it.
    told: set[str] = field(default_factory=set)
    unsettled: set[str] = field(default_factory=set)
    # What came of jobs that were taken back.
    recalled: Changed = field(default_factory=Changed)


def apply_batch(session: Session, batch: Batch, turn: Turn) -> tuple[Applied, Changed]:
    """Apply what the node sent; everything before the first faulty event stays applied.

    Raises:
        HansaError: ``EPOCH_FENCED``, another session has taken over; or what
            the node's state says. Nothing was applied.
    """
    standing = standing_under(session, batch.node, batch.epoch)
    named = {event.effect.run_id for event in batch.events if isinstance(event.effect, _OfRun)}
    runs = JobRepository(session).runs(named) if named else {}
    progress = _Progress(batch.node, batch.epoch, Receiver(standing.store.event_cursor), runs)
    fault = _apply_all(session, batch.events, progress, turn)
    _write(session, progress, turn)
    if batch.acked is not None:
        CommandRepository(session).acknowledge(batch.node, batch.acked, turn.now)
    changed = settle_all(session, progress.unsettled, turn) | Changed(jobs=frozenset(progress.told))
    return Applied(progress.receiver.cursor.seq, fault), changed | progress.recalled


def standing_under(session: Session, node: str, epoch: int) -> NodeStanding:
    """Return how the node stands, if the session of ``epoch`` is still its one.

    Raises:
        HansaError: ``EPOCH_FENCED``, or what the node's state says.
    """
    standing = SessionRepository(session).standing(node)
    check_standing(epoch, standing.epoch)
    check_admitted(standing.state)
    return standing


def _apply_all(session: Session, events: Sequence[Event], progress: _Progress, turn: Turn) -> HansaError | None:
    for event in events:
        try:
            _apply(session, event, progress, turn)
        except HansaError as error:
            _log.warning(
                "event_refused", node=progress.node, seq=event.seq, reason=error.reason.value, detail=str(error)
            )
            return error
    return None


def _apply(session: Session, event: Event, progress: _Progress, turn: Turn) -> None:
    """Apply one event; a repeat changes nothing.

    Everything is checked before anything is written: a refused event leaves
    nothing behind in a transaction that others of its batch go on with.
    """
    check_epoch(event.epoch, progress.epoch)
    match progress.receiver.judge(event.seq, event.prev_hash):
        case Verdict.REPEAT:
            return
        case Verdict.GAP:
            raise HansaError(Reason.PROTOCOL_VIOLATION, "An event is missing before this one.")
        case Verdict.FORK:
            quarantine_node(session, NodeId(progress.node), "the node's events have forked", turn.now)
            raise HansaError(Reason.NODE_QUARANTINED)
        case Verdict.APPLY:
            _take(session, event.effect, progress, turn)
            progress.received.append((progress.receiver.applied(event.body), event.body))


def _take(session: Session, effect: Effect, progress: _Progress, turn: Turn) -> None:
    if isinstance(effect, _OfRun) and effect.run_id not in progress.runs and is_restored(session):
        # Of a job that was submitted after the backup, and that is not taken back.
        _log.warning("event_of_forgotten_run", node=progress.node, run_id=ascii(effect.run_id[:40]))
        return
    match effect:
        case JobReported(job):
            known, changed = recall_job(session, progress.node, job, turn)
            progress.runs |= {run_id: found for run_id, found in known.items() if run_id not in progress.runs}
            progress.recalled |= changed
        case InventoryReported(datasets):
            check_inventory(progress.node, datasets)
            offered = [Dataset(d.dataset_id, progress.node, d.build, d.snapshot) for d in datasets]
            DatasetRepository(session).replace(progress.node, offered)
        case RunReported():
            _follow(session, effect, progress, turn)
        case SummaryReleased():
            _announce(session, effect, progress, turn)
        case ReleaseLogged():
            _keep_proof(session, effect, progress)


def _follow(session: Session, report: RunReported, progress: _Progress, turn: Turn) -> None:
    job_id, run = _run_of(report.run_id, progress)
    change = run_change(run, report)
    if change is None:
        return
    if change.state is RunState.RELEASED and not run.statement:
        if is_restored(session):
            # The statement came while its job was forgotten here, which was taken back meanwhile; both are told again.
            _log.warning("release_of_forgotten_run", **_names(job_id, run))
            return
        fault = HansaError(Reason.STATEMENT_INVALID, "The node says released, and has signed nothing.")
        set_apart(session, run, job_id, fault, turn)
        raise fault
    after = replace(run, state=change.state, execution=change.execution, reason=change.reason, incident=change.incident)
    progress.runs[run.run_id] = (job_id, after)
    progress.changed.add(run.run_id)
    _log.info("run_reported", **_names(job_id, after), state=after.state.value, reason=after.reason)
    progress.told.add(job_id)
    if may_end_a_job(after.state):
        progress.unsettled.add(job_id)


def _names(job_id: str, run: RunRecord) -> dict[str, str | int]:
    return {"job_id": job_id, "run_id": run.run_id, "node": run.node, "execution": run.execution}


def _announce(session: Session, released: SummaryReleased, progress: _Progress, turn: Turn) -> None:
    job_id, run = _run_of(released.run_id, progress)
    if released.attempt != run.attempt:
        return
    statement = take_statement(session, released, job_id, run, turn)
    # The upload may have come before: asked again with the statement there.
    known = JobRepository(session).runs({run.run_id})[run.run_id][1]
    progress.runs[run.run_id] = (job_id, replace(run, statement=statement, stored=known.stored, empty=known.empty))
    progress.told.add(job_id)


def _keep_proof(session: Session, logged: ReleaseLogged, progress: _Progress) -> None:
    """Keep a node's proof for the researcher, who verifies all of it; here, that it is one."""
    _, run = _run_of(logged.run_id, progress)
    check_proof(logged.inclusion)
    at = parse_note(logged.checkpoint).checkpoint
    whole = len(logged.entry) <= MOST_ENTRY_BYTES and logged.entry.isascii()
    if not whole or not verify_inclusion(leaf_hash(logged.entry), logged.index, at.size, logged.inclusion, at.root):
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The proof of the release's entry is none.")
    if logged.attempt == run.attempt:
        proof = ReleaseProof(run.run_id, logged.checkpoint, logged.index, logged.entry, logged.inclusion)
        ReleaseProofRepository(session).add(proof)


def _run_of(run_id: str, progress: _Progress) -> tuple[str, RunRecord]:
    found = progress.runs.get(run_id)
    if found is None:
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The event names a run that is not there.")
    if found[1].node != progress.node:
        raise HansaError(Reason.NODE_MISMATCH, "The event names another node's run.")
    return found


def _write(session: Session, progress: _Progress, turn: Turn) -> None:
    if not progress.received:
        return
    JobRepository(session).change_runs([progress.runs[run_id][1] for run_id in sorted(progress.changed)], turn.now)
    EventRepository(session).append(progress.node, progress.received)
    SessionRepository(session).move_cursor(progress.node, progress.receiver.cursor)
