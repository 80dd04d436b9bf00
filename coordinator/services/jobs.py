"""What researchers and operators ask about jobs, and the wish to end one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.authorisation import END_JOB, READ_RESULT, SEE_JOB, Bearer, Ownership, Rule, is_allowed
from coordinator.domain.explanation import explain
from coordinator.domain.records import JobRecord
from coordinator.services.desk import Changed, Desk, Turn
from coordinator.services.evaluation import settle
from coordinator.store.audit import AuditRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.paging import Page, Slice
from coordinator.store.persons import PersonRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import job_id as checked_job_id
from hansa.contract.states import JOB_TERMINAL

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, with all their roles."""

    name: str
    roles: frozenset[Bearer]

    def may(self, rule: Rule, submitter: str) -> bool:
        """Say whether ``rule`` lets the asker have to do with a job of ``submitter``."""
        return is_allowed(self.roles, rule, Ownership.OWN if submitter == self.name else Ownership.OTHERS)


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it is shown, with the words on what it waits for."""

    job: JobRecord
    waits_for: str


@dataclass(frozen=True, slots=True)
class JobResult:
    """An ended job and its result as JSON."""

    view: JobView
    content: bytes


def show(job: JobRecord, turn: Turn) -> JobView:
    """Return the job with the words on what it waits for now."""
    return JobView(job, explain(job, turn.now))


def view_job(session: Session, job_id: str, asker: Asker, turn: Turn) -> JobView:
    """Return the job.

    Raises:
        HansaError: ``JOB_UNKNOWN``, also where it is somebody else's.
    """
    return show(_visible(session, job_id, asker), turn)


def list_jobs(session: Session, page: Page, asker: Asker, turn: Turn) -> Slice[JobView]:
    """Return the asker's jobs, newest first; all jobs for operators and auditors.

    Raises:
        HansaError: ``MALFORMED``; the page does not continue this list.
    """
    sees_all = is_allowed(asker.roles, SEE_JOB, Ownership.OTHERS)
    submitter = None if sees_all else asker.name
    found = JobRepository(session).page(submitter=submitter, before=page.after or None, size=page.limit + 1)
    shown = found[: page.limit]
    last = shown[-1].job_id if len(found) > page.limit else ""
    return Slice(tuple(show(job, turn) for job in shown), last)


def cancel_job(session: Session, job_id: str, asker: Asker, *, request_id: str, turn: Turn) -> tuple[JobView, Changed]:
    """Write down that the researcher wants an end, and tell the nodes.

    A job that is being cancelled, or was cancelled by this request, is
    returned as it is.

    Raises:
        HansaError: ``JOB_UNKNOWN``; ``PERMISSION_DENIED``, an operator does
            not cancel other people's jobs; ``JOB_ENDED``.
    """
    job = job_for(END_JOB, session, job_id, asker)
    jobs = JobRepository(session)
    if job.cancel_requested and (job.state not in JOB_TERMINAL or job.cancel_request_id == request_id):
        return show(job, turn), Changed()
    if job.state in JOB_TERMINAL:
        raise HansaError(Reason.JOB_ENDED)
    jobs.request_cancel(job_id, request_id=request_id, now=turn.now)
    changed = settle(session, job_id, turn)
    AuditRepository(session).append(at=turn.now, actor=asker.name, action="job_cancelled", subject=job_id)
    _log.info("job_cancel_requested", job_id=job_id)
    return show(jobs.get(job_id), turn), changed


def job_result(session: Session, job_id: str, asker: Asker, turn: Turn) -> JobResult:
    """Return what the job ended with.

    Raises:
        HansaError: ``JOB_UNKNOWN``; ``PERMISSION_DENIED``, an operator does
            not read other people's results; ``JOB_NOT_ENDED``; ``RESULT_PURGED``.
    """
    job = job_for(READ_RESULT, session, job_id, asker)
    return JobResult(show(job, turn), result_of(session, job))


def result_of(session: Session, job: JobRecord) -> bytes:
    """Return what ``job`` ended with.

    Raises:
        HansaError: ``JOB_NOT_ENDED``; ``RESULT_PURGED``, it was kept for its time.
    """
    if job.state not in JOB_TERMINAL:
        raise HansaError(Reason.JOB_NOT_ENDED)
    content = JobRepository(session).result(job.job_id)
    if content is None:
        raise HansaError(Reason.RESULT_PURGED)
    return content


async def watch_job(desk: Desk, job_id: str, asker: Asker) -> AsyncGenerator[JobView, None]:
    """Yield the job at once and after each change, until it has ended.

    Changes that come faster than they are taken are told as one.

    Raises:
        HansaError: ``JOB_UNKNOWN``, also where it is somebody else's;
            ``UNAUTHENTICATED``, the asker is not in the directory any more.
    """
    with desk.bells.of_job(job_id) as bell:
        shown: JobView | None = None
        while shown is None or shown.job.state not in JOB_TERMINAL:
            # Before the look, so that no change falls between look and wait.
            bell.clear()
            turn = desk.turn()
            view = await desk.read(partial(_view_still, job_id=job_id, asker=asker, turn=turn))
            if view != shown:
                shown = view
                yield view
            if view.job.state not in JOB_TERMINAL:
                await bell.wait()


def _view_still(session: Session, job_id: str, asker: Asker, turn: Turn) -> JobView:
    """Return the job for an asker who began to look under an earlier directory."""
    person = PersonRepository(session).get(asker.name)
    if person is None:
        raise HansaError(Reason.UNAUTHENTICATED, log="no such person any more")
    return view_job(session, job_id, Asker(asker.name, frozenset(person.roles)), turn)


def _visible(session: Session, job_id: str, asker: Asker) -> JobRecord:
    job = JobRepository(session).get(checked_job_id(job_id))
    if not asker.may(SEE_JOB, job.submitter):
        raise HansaError(Reason.JOB_UNKNOWN)
    return job


def job_for(rule: Rule, session: Session, job_id: str, asker: Asker) -> JobRecord:
    """Return a job that ``rule`` lets the asker act on; who may not see it is not told that it is there."""
    job = _visible(session, job_id, asker)
    if not asker.may(rule, job.submitter):
        raise HansaError(Reason.PERMISSION_DENIED)
    return job
