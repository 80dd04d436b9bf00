"""Brings a job to the state that its runs give it, in the transaction that changed them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.evaluation import Evaluation, evaluate
from coordinator.domain.frames import Cancel
from coordinator.domain.records import JobRecord, RunRecord
from coordinator.services.combination import combine
from coordinator.services.desk import Changed, Turn
from coordinator.store.jobs import JobRepository
from coordinator.store.outboxes import CommandRepository
from hansa.contract.errors import RunReason
from hansa.contract.states import JOB_TERMINAL, RunState

_log = structlog.get_logger(__name__)


def settle_all(session: Session, job_ids: Iterable[str], turn: Turn) -> Changed:
    """Settle each job, in the order of their ids, so that transactions wait for each other in turn."""
    changed = Changed()
    for job_id in sorted(job_ids):
        changed |= settle(session, job_id, turn)
    return changed


def settle(session: Session, job_id: str, turn: Turn) -> Changed:
    """Derive the job's state and do what follows from it; a repeat does nothing.

    Raises:
        HansaError: ``JOB_UNKNOWN``.
    """
    jobs = JobRepository(session)
    job = jobs.get(job_id)
    verdict = evaluate(job, turn.now)
    if verdict.state is job.state and not verdict.moves:
        return Changed()
    _move_runs(session, job, verdict, turn)
    if verdict.state in JOB_TERMINAL:
        _end(session, replace(jobs.get(job_id), state=verdict.state), turn)
    elif verdict.state is not job.state:
        jobs.move(job_id, verdict.state, ended_at=None, result=None)
    return Changed(frozenset({job_id}), frozenset(run.node for run in verdict.cancels))


def _move_runs(session: Session, job: JobRecord, verdict: Evaluation, turn: Turn) -> None:
    moves = dict(verdict.moves)
    moved = [_moved(run, moves[run.run_id]) for run in job.runs if run.run_id in moves]
    JobRepository(session).change_runs(moved, turn.now)
    commands = CommandRepository(session)
    for run in verdict.cancels:
        commands.append(run.node, turn.encode(Cancel(run.run_id, run.attempt), turn.now), turn.now)
        _log.info("run_cancel_sent", job_id=job.job_id, run_id=run.run_id, node=run.node)


def _moved(run: RunRecord, state: RunState) -> RunRecord:
    return replace(run, state=state, reason=RunReason.DEADLINE_PASSED if state is RunState.EXPIRED else "")


def _end(session: Session, job: JobRecord, turn: Turn) -> None:
    state, result = combine(session, job)
    if JobRepository(session).move(job.job_id, state, ended_at=turn.now, result=result):
        _log.info("job_ended", job_id=job.job_id, state=state.value)
