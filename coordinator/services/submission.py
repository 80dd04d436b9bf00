"""How a signed job comes in: everything is checked, then everything is stored at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.frames import Offer
from coordinator.domain.quotas import Load, Quotas, check_room
from coordinator.domain.records import Contact, JobRecord, RunRecord
from coordinator.domain.routing import check_project, check_request, check_route
from coordinator.services.catalogue import find_analysis
from coordinator.services.combination import read_manifest
from coordinator.services.desk import Changed, Turn
from coordinator.services.trust import directory_in_force
from coordinator.store.audit import AuditRepository
from coordinator.store.jobs import JobRepository, NewJob
from coordinator.store.outboxes import CommandRepository
from coordinator.store.persons import PersonRepository
from coordinator.store.sessions import SessionRepository
from hansa.contract import envelope as dsse
from hansa.contract.delivery import Repeat, repeat
from hansa.contract.digests import canonical, digest
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import run_id
from hansa.contract.job import JobSpec, check_quorum, check_window, parse_job
from hansa.contract.log_evidence import SUBMITTED, logged_submission
from hansa.contract.raw_keys import signing_key
from hansa.contract.states import JobState, RunState

_log = structlog.get_logger(__name__)

_FIRST_ROUND = 1


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Intake:
    """Whether new jobs are taken at all, and how many may be open.

    ``short`` returns why the store's disk has no room for more; empty if it has.
    """

    quotas: Quotas = field(default_factory=Quotas)
    draining: Callable[[], bool] = _never
    short: Callable[[], str] = str


def submit_job(
    session: Session, *, signed: Signed, caller: str, turn: Turn, intake: Intake = Intake()
) -> tuple[JobRecord, Changed]:
    """Store the job with its runs and offers; the same bytes again change nothing.

    A repeat is answered whatever the time, and however much there is to do:
    its answer may have been lost.

    Raises:
        HansaError: ``ENVELOPE_INVALID``, ``IDEMPOTENCY_MISMATCH``,
            ``COORDINATOR_DRAINING``, ``STORE_FULL``, ``QUOTA_EXCEEDED``, ``OVERLOADED``, or
            what is wrong with the request.
    """
    spec = verified_job(session, signed, caller)
    jobs = JobRepository(session)
    if repeat(jobs.envelope_digest(spec.job_id), _digest(signed), field="job_id") is Repeat.AGAIN:
        return jobs.get(spec.job_id), Changed()
    if intake.draining():
        raise HansaError(Reason.COORDINATOR_DRAINING)
    if short := intake.short():
        # Before anything is promised: the room that is left is for the work that was accepted.
        raise HansaError(Reason.STORE_FULL, log=short)
    _check(session, spec, turn)
    # Last: who is told to come again later is not refused for another reason then.
    check_room(intake.quotas, _load(session, spec))
    changed = admit_job(session, spec, signed, turn)
    return jobs.get(spec.job_id), changed


def admit_job(session: Session, spec: JobSpec, signed: Signed, turn: Turn) -> Changed:
    """Store a job that is not there yet, with its runs and offers; return what changed."""
    envelope_digest = _digest(signed)
    JobRepository(session).add(
        NewJob(record=_record(spec, turn), project=spec.project, envelope=signed, envelope_digest=envelope_digest)
    )
    _offer(session, spec, signed, turn)
    AuditRepository(session).append(
        at=turn.now,
        actor=spec.submitter,
        action=SUBMITTED,
        subject=f"{spec.job_id} {envelope_digest}",
        facts=logged_submission(spec.job_id, digest(signed.payload)),
    )
    _log.info("job_submitted", job_id=spec.job_id, submitter=spec.submitter, nodes=list(spec.nodes))
    return Changed(frozenset({spec.job_id}), frozenset(spec.nodes), spec.not_after)


def verified_job(session: Session, signed: Signed, caller: str) -> JobSpec:
    """Return what ``caller`` has signed and submits.

    Raises:
        HansaError: ``ENVELOPE_INVALID``; ``UNAUTHENTICATED``, nobody of that name
            is in the directory in force.
    """
    spec = parse_job(signed.payload)
    if not signed.key_id == caller == spec.submitter:
        raise HansaError(Reason.ENVELOPE_INVALID, "The caller, the signer and the submitter differ.", field="submitter")
    person = PersonRepository(session).get(caller)
    if person is None:
        raise HansaError(Reason.UNAUTHENTICATED)
    dsse.verify(signed, payload_type=dsse.JOB_TYPE, key=signing_key(person.signing_key))
    return spec


def _digest(signed: Signed) -> str:
    parts = (signed.payload_type.encode(), signed.key_id.encode(), signed.signature, signed.payload)
    return digest(canonical([digest(part) for part in parts]))


def _check(session: Session, spec: JobSpec, turn: Turn) -> None:
    check_window(spec, turn.now)
    check_quorum(spec)
    check_project(spec, directory_in_force(session), turn.now)
    analysis = find_analysis(session, spec.analysis.name, spec.analysis.version)
    check_request(spec, read_manifest(analysis.manifest), analysis.digest)
    nodes = SessionRepository(session)
    check_route(spec, nodes.states(spec.nodes), nodes.holdings(spec.nodes))


def _load(session: Session, spec: JobSpec) -> Load:
    count = JobRepository(session).count_open(submitter=spec.submitter, project=spec.project)
    commands = CommandRepository(session)
    return Load(
        jobs=count.all,
        jobs_of_researcher=count.of_submitter,
        jobs_of_project=count.of_project,
        waiting={node: commands.waiting(node) for node in spec.nodes},
    )


def _record(spec: JobSpec, turn: Turn) -> JobRecord:
    runs = tuple(
        RunRecord(
            run_id=run_id(spec.job_id, ref.node, _FIRST_ROUND),
            node=ref.node,
            dataset=ref.dataset,
            state=RunState.OFFERED,
            # Stands in the node's row; what is stored of a run has none.
            contact=Contact(connected=False, since=None),
            updated_at=turn.now,
        )
        for ref in spec.datasets
    )
    return JobRecord(
        job_id=spec.job_id,
        submitter=spec.submitter,
        analysis_name=spec.analysis.name,
        analysis_version=spec.analysis.version,
        analysis_digest=spec.analysis.digest,
        state=JobState.PENDING,
        quorum=spec.quorum,
        submitted_at=turn.now,
        not_after=spec.not_after,
        runs=runs,
    )


def _offer(session: Session, spec: JobSpec, signed: Signed, turn: Turn) -> None:
    commands = CommandRepository(session)
    # In one order, so that two submissions never wait for each other in a ring.
    for node in sorted(spec.nodes):
        run = run_id(spec.job_id, node, _FIRST_ROUND)
        offer = Offer(run_id=run, job_id=spec.job_id, round=_FIRST_ROUND, attempt=1, job=signed)
        commands.append(node, turn.encode(offer, turn.now), turn.now)
