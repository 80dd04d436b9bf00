"""Jobs and their runs. Works inside the caller's transaction, never commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import CursorResult, Select, func, select, tuple_, update
from sqlalchemy.orm import Session

from coordinator.domain.records import Contact, JobRecord, RunRecord
from coordinator.domain.reports import RunChange
from coordinator.store.job_models import JobRow, RunRow, SummaryRow
from coordinator.store.people_models import NodeRow
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, JobState, RunState

_ENDED: Final = sorted(JOB_TERMINAL)
_RUN_ENDED: Final = sorted(RUN_TERMINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job about to be stored, with the digest of its whole envelope."""

    record: JobRecord
    envelope: Signed
    envelope_digest: str


class JobRepository:
    """Jobs, their runs and their results."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, job: NewJob) -> None:
        """Store a job that is not there yet, with its runs."""
        record, envelope = job.record, job.envelope
        self._session.add(
            JobRow(
                job_id=record.job_id,
                submitter=record.submitter,
                payload_type=envelope.payload_type,
                payload=envelope.payload,
                key_id=envelope.key_id,
                signature=envelope.signature,
                envelope_digest=job.envelope_digest,
                analysis_name=record.analysis_name,
                analysis_version=record.analysis_version,
                analysis_digest=record.analysis_digest,
                quorum=record.quorum,
                submitted_at=record.submitted_at,
                not_after=record.not_after,
                cancel_request_id="",
                state=record.state.value,
            )
        )
        # The runs' foreign key needs the job first.
        self._session.flush()
        for position, run in enumerate(record.runs):
            self._session.add(_run_row(record.job_id, position, run))
        self._session.flush()

    def envelope_digest(self, job_id: str) -> str | None:
        """Return the digest of the envelope stored under ``job_id``, or None."""
        return self._session.scalar(select(JobRow.envelope_digest).where(JobRow.job_id == job_id))

    def envelope(self, job_id: str) -> Signed:
        """Return the job as it was signed.

        Raises:
            HansaError: ``JOB_UNKNOWN``.
        """
        row = self._session.execute(
            select(JobRow.payload_type, JobRow.payload, JobRow.key_id, JobRow.signature).where(JobRow.job_id == job_id)
        ).one_or_none()
        if row is None:
            raise HansaError(Reason.JOB_UNKNOWN)
        return Signed(row.payload_type, row.payload, row.key_id, row.signature)

    def get(self, job_id: str, *, lock: bool = False) -> JobRecord:
        """Return the job, locked against other transactions if ``lock``.

        Raises:
            HansaError: ``JOB_UNKNOWN``.
        """
        query = select(JobRow).where(JobRow.job_id == job_id).execution_options(populate_existing=True)
        row = self._session.scalar(query.with_for_update() if lock else query)
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
        place = tuple_(JobRow.submitted_at, JobRow.job_id)
        query: Select[tuple[JobRow]] = select(JobRow)
        if submitter is not None:
            query = query.where(JobRow.submitter == submitter)
        if before is not None:
            last = self._session.scalar(query.where(JobRow.job_id == before))
            if last is None:
                raise HansaError(Reason.MALFORMED, "The page token is not one of this list.", field="page_token")
            query = query.where(place < (last.submitted_at, last.job_id))
        rows = self._session.scalars(query.order_by(JobRow.submitted_at.desc(), JobRow.job_id.desc()).limit(size)).all()
        return self._records(rows)

    def request_cancel(self, job_id: str, *, request_id: str, now: datetime) -> None:
        """Write down the first wish to cancel; a later one changes nothing."""
        self._session.execute(
            update(JobRow)
            .where(JobRow.job_id == job_id, JobRow.cancel_requested_at.is_(None))
            .values(cancel_requested_at=now, cancel_request_id=request_id)
        )

    def move(self, job_id: str, state: JobState, *, ended_at: datetime | None, result: bytes | None) -> bool:
        """Write a job's derived state, unless it has ended; say whether it was written."""
        done = self._session.execute(
            update(JobRow)
            .where(JobRow.job_id == job_id, JobRow.state.not_in(_ENDED))
            .values(state=state.value, ended_at=ended_at, result=result)
        )
        return isinstance(done, CursorResult) and done.rowcount == 1

    def result(self, job_id: str) -> bytes | None:
        """Return what the job ended with; None before its end."""
        return self._session.scalar(select(JobRow.result).where(JobRow.job_id == job_id))

    def move_run(self, run_id: str, state: RunState, *, reason: str, now: datetime) -> None:
        """Write a run's new state, unless it has ended."""
        self._session.execute(
            update(RunRow)
            .where(RunRow.run_id == run_id, RunRow.state.not_in(_RUN_ENDED))
            .values(state=state.value, reason=reason, updated_at=now)
        )

    def change_run(self, run_id: str, change: RunChange, now: datetime) -> None:
        """Write what a node's report changes, unless the run has ended."""
        self._session.execute(
            update(RunRow)
            .where(RunRow.run_id == run_id, RunRow.state.not_in(_RUN_ENDED))
            .values(
                state=change.state.value,
                execution=change.execution,
                reason=change.reason,
                incident=change.incident,
                updated_at=now,
            )
        )

    def announce_summary(self, run_id: str, digest: bytes) -> bool:
        """Keep the digest that the node announced; false if it announced another before."""
        known = self.announced_digest(run_id)
        if known == b"":
            self._session.execute(update(RunRow).where(RunRow.run_id == run_id).values(released_digest=digest))
        return known in (b"", digest)

    def announced_digest(self, run_id: str) -> bytes | None:
        """Return the digest that the node announced; empty before, None without a run."""
        return self._session.scalar(select(RunRow.released_digest).where(RunRow.run_id == run_id))

    def open_jobs_of(self, nodes: Iterable[str]) -> list[str]:
        """Return the ids of jobs that have not ended and have a run at one of ``nodes``."""
        query = (
            select(JobRow.job_id)
            .distinct()
            .join(RunRow, RunRow.job_id == JobRow.job_id)
            .where(JobRow.state.not_in(_ENDED), RunRow.node.in_(sorted(nodes)))
        )
        return sorted(self._session.scalars(query))

    def open_jobs(self) -> list[str]:
        """Return the ids of all jobs that have not ended."""
        return sorted(self._session.scalars(select(JobRow.job_id).where(JobRow.state.not_in(_ENDED))))

    def overdue(self, now: datetime) -> list[str]:
        """Return the ids of jobs whose deadline has passed and that have not ended."""
        query = select(JobRow.job_id).where(JobRow.state.not_in(_ENDED), JobRow.not_after <= now)
        return sorted(self._session.scalars(query))

    def next_deadline(self) -> datetime | None:
        """Return the earliest deadline of a job that has not ended."""
        return self._session.scalar(select(func.min(JobRow.not_after)).where(JobRow.state.not_in(_ENDED)))

    def run_of(self, run_id: str) -> tuple[str, RunRecord] | None:
        """Return the job's id and the run, or None."""
        found = self._runs(select(RunRow, NodeRow, SummaryRow).where(RunRow.run_id == run_id))
        return found[0] if found else None

    def _records(self, rows: Sequence[JobRow]) -> list[JobRecord]:
        ids = [row.job_id for row in rows]
        runs: dict[str, list[RunRecord]] = {job_id: [] for job_id in ids}
        query = select(RunRow, NodeRow, SummaryRow).where(RunRow.job_id.in_(ids)).order_by(RunRow.position)
        for job_id, run in self._runs(query):
            runs[job_id].append(run)
        return [_job_record(row, tuple(runs[row.job_id])) for row in rows]

    def _runs(self, query: Select[tuple[RunRow, NodeRow, SummaryRow]]) -> list[tuple[str, RunRecord]]:
        joined = (
            query.join(NodeRow, NodeRow.node == RunRow.node)
            .outerjoin(SummaryRow, SummaryRow.run_id == RunRow.run_id)
            # Rows seen earlier in this transaction may have been updated since.
            .execution_options(populate_existing=True)
        )
        return [(run.job_id, _run_record(run, node, summary)) for run, node, summary in self._session.execute(joined)]


def _run_row(job_id: str, position: int, run: RunRecord) -> RunRow:
    return RunRow(
        run_id=run.run_id,
        job_id=job_id,
        position=position,
        node=run.node,
        round=run.round,
        attempt=run.attempt,
        execution=run.execution,
        state=run.state.value,
        reason=run.reason,
        incident=run.incident,
        dataset=run.dataset,
        released_digest=b"",
        updated_at=run.updated_at,
    )


def _run_record(row: RunRow, node: NodeRow, summary: SummaryRow | None) -> RunRecord:
    return RunRecord(
        run_id=row.run_id,
        node=row.node,
        dataset=row.dataset,
        state=RunState(row.state),
        contact=Contact(node.connected, node.since),
        updated_at=row.updated_at,
        round=row.round,
        attempt=row.attempt,
        execution=row.execution,
        reason=row.reason,
        incident=row.incident,
        stored=summary is not None,
        empty=summary is not None and summary.empty,
    )


def _job_record(row: JobRow, runs: tuple[RunRecord, ...]) -> JobRecord:
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
