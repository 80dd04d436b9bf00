"""Jobs and their runs. Works inside the caller's transaction, never commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, bindparam, case, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from coordinator.domain.records import Contact, JobRecord, RunRecord
from coordinator.store.job_models import JOBS, NODES, RUNS, STATEMENTS, SUMMARIES
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, JobState, RunState

_ENDED: Final = sorted(JOB_TERMINAL)
_RUN_ENDED: Final = sorted(RUN_TERMINAL)
_OPEN: Final = sorted(set(JobState) - JOB_TERMINAL)

_JOB: Final = select(
    JOBS.c.job_id,
    JOBS.c.submitter,
    JOBS.c.analysis_name,
    JOBS.c.analysis_version,
    JOBS.c.analysis_digest,
    JOBS.c.state,
    JOBS.c.quorum,
    JOBS.c.submitted_at,
    JOBS.c.not_after,
    JOBS.c.cancel_requested_at,
    JOBS.c.cancel_request_id,
    JOBS.c.ended_at,
)
_ONE_JOB: Final = _JOB.where(JOBS.c.job_id == bindparam("job_id"))
_ENVELOPE: Final = select(JOBS.c.payload_type, JOBS.c.payload, JOBS.c.key_id, JOBS.c.signature).where(
    JOBS.c.job_id == bindparam("job_id")
)
_RUN: Final = select(
    RUNS.c.run_id,
    RUNS.c.job_id,
    RUNS.c.node,
    RUNS.c.round,
    RUNS.c.attempt,
    RUNS.c.execution,
    RUNS.c.state,
    RUNS.c.reason,
    RUNS.c.incident,
    RUNS.c.dataset,
    RUNS.c.updated_at,
    NODES.c.connected,
    NODES.c.since,
    SUMMARIES.c.empty,
    STATEMENTS.c.digest.label("statement"),
).select_from(
    RUNS.join(NODES, NODES.c.node == RUNS.c.node)
    .outerjoin(SUMMARIES, SUMMARIES.c.run_id == RUNS.c.run_id)
    .outerjoin(STATEMENTS, STATEMENTS.c.run_id == RUNS.c.run_id)
)
_RUNS_OF_JOBS: Final = _RUN.where(RUNS.c.job_id.in_(bindparam("job_ids", expanding=True))).order_by(RUNS.c.position)
_RUNS_BY_ID: Final = _RUN.where(RUNS.c.run_id.in_(bindparam("run_ids", expanding=True)))
_UPLOAD: Final = (
    select(
        RUNS.c.job_id,
        RUNS.c.node,
        RUNS.c.attempt,
        RUNS.c.state,
        RUNS.c.released_digest,
        SUMMARIES.c.digest.label("stored"),
        JOBS.c.analysis_digest,
        JOBS.c.payload,
    )
    .select_from(
        RUNS.join(JOBS, JOBS.c.job_id == RUNS.c.job_id).outerjoin(SUMMARIES, SUMMARIES.c.run_id == RUNS.c.run_id)
    )
    .where(RUNS.c.run_id == bindparam("run_id"))
)
# By name, not by exclusion: what has ended, which is nearly everything, is not even looked at.
_COUNT_OPEN: Final = select(
    func.count().label("jobs"),
    func.sum(case((JOBS.c.submitter == bindparam("submitter"), 1), else_=0)).label("of_submitter"),
    func.sum(case((JOBS.c.project == bindparam("project"), 1), else_=0)).label("of_project"),
).where(JOBS.c.state.in_(_OPEN))
_CHANGE_RUN: Final = (
    update(RUNS)
    # No NOT IN: it cannot be executed for many rows at once.
    .where(RUNS.c.run_id == bindparam("of_run"), *(RUNS.c.state != ended for ended in _RUN_ENDED))
    .values(
        state=bindparam("to_state"),
        execution=bindparam("to_execution"),
        reason=bindparam("to_reason"),
        incident=bindparam("to_incident"),
        updated_at=bindparam("now"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job about to be stored, with the digest of its whole envelope."""

    record: JobRecord
    project: str
    envelope: Signed
    envelope_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """What is known of a run whose summary is being uploaded; ``payload`` is its job as signed.

    ``announced`` is empty before the node has announced a digest; ``stored``
    is None before a summary is there.
    """

    job_id: str
    node: str
    attempt: int
    state: RunState
    announced: bytes
    stored: bytes | None
    analysis_digest: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """How many jobs have not ended: in all, of one submitter, of one project."""

    all: int
    of_submitter: int
    of_project: int


class JobRepository:
    """Jobs, their runs and their results."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()

    def add(self, job: NewJob) -> None:
        """Store a job that is not there yet, with its runs."""
        self._connection.execute(insert(JOBS), _job_values(job))
        self._connection.execute(
            insert(RUNS),
            [_run_values(job.record.job_id, position, run) for position, run in enumerate(job.record.runs)],
        )

    def envelope_digest(self, job_id: str) -> str | None:
        """Return the digest of the envelope stored under ``job_id``, or None."""
        found: str | None = self._connection.scalar(select(JOBS.c.envelope_digest).where(JOBS.c.job_id == job_id))
        return found

    def envelope(self, job_id: str) -> Signed:
        """Return the job as it was signed.

        Raises:
            HansaError: ``JOB_UNKNOWN``.
        """
        row = self._connection.execute(_ENVELOPE, {"job_id": job_id}).one_or_none()
        if row is None:
            raise HansaError(Reason.JOB_UNKNOWN)
        return Signed(row.payload_type, row.payload, row.key_id, row.signature)

    def get(self, job_id: str) -> JobRecord:
        """Return the job.

        Raises:
            HansaError: ``JOB_UNKNOWN``.
        """
        row = self._connection.execute(_ONE_JOB, {"job_id": job_id}).one_or_none()
        if row is None:
            raise HansaError(Reason.JOB_UNKNOWN)
        return self._records([row])[0]

    def page(self, *, submitter: str | None, before: str | None, size: int) -> list[JobRecord]:
        """Return up to ``size`` jobs, newest first.

        Args:
            submitter: whose jobs; everybody's if None.
            before: the id of the last job of the page before.
            size: at least 1.

        Raises:
            HansaError: ``MALFORMED``; ``before`` is no job of this list.
        """
        query = _JOB if submitter is None else _JOB.where(JOBS.c.submitter == submitter)
        if before is not None:
            last = self._connection.execute(query.where(JOBS.c.job_id == before)).one_or_none()
            if last is None:
                raise HansaError(Reason.MALFORMED, "The page token is not one of this list.", field="page_token")
            query = query.where(tuple_(JOBS.c.submitted_at, JOBS.c.job_id) < (last.submitted_at, last.job_id))
        newest_first = query.order_by(JOBS.c.submitted_at.desc(), JOBS.c.job_id.desc())
        return self._records(self._connection.execute(newest_first.limit(size)).all())

    def request_cancel(self, job_id: str, *, request_id: str, now: datetime) -> None:
        """Write down the first wish to cancel; a later one changes nothing."""
        self._connection.execute(
            update(JOBS)
            .where(JOBS.c.job_id == job_id, JOBS.c.cancel_requested_at.is_(None))
            .values(cancel_requested_at=now, cancel_request_id=request_id)
        )

    def move(self, job_id: str, state: JobState, *, ended_at: datetime | None, result: bytes | None) -> bool:
        """Write a job's derived state, unless it has ended; say whether it was written."""
        done = self._connection.execute(
            update(JOBS)
            .where(JOBS.c.job_id == job_id, JOBS.c.state.not_in(_ENDED))
            .values(state=state.value, ended_at=ended_at, result=result)
        )
        return done.rowcount == 1

    def result(self, job_id: str) -> bytes | None:
        """Return what the job ended with; None before its end."""
        found: bytes | None = self._connection.scalar(select(JOBS.c.result).where(JOBS.c.job_id == job_id))
        return found

    def change_runs(self, runs: Sequence[RunRecord], now: datetime) -> None:
        """Write state, execution, reason and incident of runs that have not ended."""
        if runs:
            self._connection.execute(_CHANGE_RUN, [_change_values(run, now) for run in runs])

    def announce_summary(self, run_id: str, digest: bytes) -> bool:
        """Keep the digest that the node announced; false if it announced another before."""
        known = self._connection.scalar(select(RUNS.c.released_digest).where(RUNS.c.run_id == run_id))
        if known == b"":
            self._connection.execute(update(RUNS).where(RUNS.c.run_id == run_id).values(released_digest=digest))
        return known in (b"", digest)

    def awaited(self, run_id: str) -> Awaited | None:
        """Return what an upload for the run must fit, or None."""
        row = self._connection.execute(_UPLOAD, {"run_id": run_id}).one_or_none()
        if row is None:
            return None
        return Awaited(
            job_id=row.job_id,
            node=row.node,
            attempt=row.attempt,
            state=RunState(row.state),
            announced=row.released_digest,
            stored=row.stored,
            analysis_digest=row.analysis_digest,
            payload=row.payload,
        )

    def open_jobs_of(self, nodes: Iterable[str]) -> list[str]:
        """Return the ids of jobs that have not ended and have a run at one of ``nodes``."""
        query = (
            select(JOBS.c.job_id)
            .distinct()
            .select_from(JOBS.join(RUNS, RUNS.c.job_id == JOBS.c.job_id))
            .where(JOBS.c.state.not_in(_ENDED), RUNS.c.node.in_(sorted(nodes)))
        )
        return sorted(self._connection.scalars(query))

    def count_open(self, *, submitter: str, project: str) -> OpenJobs:
        """Return how many jobs have not ended: in all, of ``submitter``, and of ``project``."""
        row = self._connection.execute(_COUNT_OPEN, {"submitter": submitter, "project": project}).one()
        return OpenJobs(row.jobs, row.of_submitter or 0, row.of_project or 0)

    def open_jobs(self) -> list[str]:
        """Return the ids of all jobs that have not ended."""
        return sorted(self._connection.scalars(select(JOBS.c.job_id).where(JOBS.c.state.not_in(_ENDED))))

    def overdue(self, now: datetime) -> list[str]:
        """Return the ids of jobs whose deadline has passed and that have not ended."""
        query = select(JOBS.c.job_id).where(JOBS.c.state.not_in(_ENDED), JOBS.c.not_after <= now)
        return sorted(self._connection.scalars(query))

    def next_deadline(self) -> datetime | None:
        """Return the earliest deadline of a job that has not ended."""
        first = select(func.min(JOBS.c.not_after)).where(JOBS.c.state.not_in(_ENDED))
        found: datetime | None = self._connection.scalar(first)
        return found

    def runs(self, run_ids: Iterable[str]) -> dict[str, tuple[str, RunRecord]]:
        """Return the job's id and the run, by run id, for those that there are."""
        rows = self._connection.execute(_RUNS_BY_ID, {"run_ids": sorted(run_ids)})
        return {row.run_id: (row.job_id, _run_record(row)) for row in rows}

    def _records(self, rows: Sequence[Row[Any]]) -> list[JobRecord]:
        runs: dict[str, list[RunRecord]] = {row.job_id: [] for row in rows}
        for run in self._connection.execute(_RUNS_OF_JOBS, {"job_ids": list(runs)}):
            runs[run.job_id].append(_run_record(run))
        return [_job_record(row, tuple(runs[row.job_id])) for row in rows]


def _job_values(job: NewJob) -> Mapping[str, object]:
    record, envelope = job.record, job.envelope
    return {
        "job_id": record.job_id,
        "submitter": record.submitter,
        "project": job.project,
        "payload_type": envelope.payload_type,
        "payload": envelope.payload,
        "key_id": envelope.key_id,
        "signature": envelope.signature,
        "envelope_digest": job.envelope_digest,
        "analysis_name": record.analysis_name,
        "analysis_version": record.analysis_version,
        "analysis_digest": record.analysis_digest,
        "quorum": record.quorum,
        "submitted_at": record.submitted_at,
        "not_after": record.not_after,
        "cancel_request_id": "",
        "state": record.state.value,
    }


def _run_values(job_id: str, position: int, run: RunRecord) -> Mapping[str, object]:
    return {
        "run_id": run.run_id,
        "job_id": job_id,
        "position": position,
        "node": run.node,
        "round": run.round,
        "attempt": run.attempt,
        "execution": run.execution,
        "state": run.state.value,
        "reason": run.reason,
        "incident": run.incident,
        "dataset": run.dataset,
        "released_digest": b"",
        "updated_at": run.updated_at,
    }


def _change_values(run: RunRecord, now: datetime) -> Mapping[str, object]:
    return {
        "of_run": run.run_id,
        "to_state": run.state.value,
        "to_execution": run.execution,
        "to_reason": run.reason,
        "to_incident": run.incident,
        "now": now,
    }


def _run_record(row: Row[Any]) -> RunRecord:
    return RunRecord(
        run_id=row.run_id,
        node=row.node,
        dataset=row.dataset,
        state=RunState(row.state),
        contact=Contact(row.connected, row.since),
        updated_at=row.updated_at,
        round=row.round,
        attempt=row.attempt,
        execution=row.execution,
        reason=row.reason,
        incident=row.incident,
        stored=row.empty is not None and row.statement is not None,
        empty=bool(row.empty),
        statement=row.statement or "",
    )


def _job_record(row: Row[Any], runs: tuple[RunRecord, ...]) -> JobRecord:
    return JobRecord(
        job_id=row.job_id,
        submitter=row.submitter,
        analysis_name=row.analysis_name,
        analysis_version=row.analysis_version,
        analysis_digest=row.analysis_digest,
        state=JobState(row.state),
        quorum=row.quorum,
        submitted_at=row.submitted_at,
        not_after=row.not_after,
        runs=runs,
        cancel_requested=row.cancel_requested_at is not None,
        cancel_request_id=row.cancel_request_id,
        ended_at=row.ended_at,
    )
