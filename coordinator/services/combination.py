"""What an ended job's released summaries say together, stored once. Sealed ones are kept for their reader."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.records import JobRecord
from coordinator.store.catalogue import AnalysisRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.summaries import SummaryRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import parse_job
from hansa.contract.manifest import Manifest, parse_manifest
from hansa.contract.states import JobState, RunState
from hansa.contract.summary import Summary, parse_summary
from hansa.statistics.result import CombinationError, JobEnd, RunEnd, result_bytes

_log = structlog.get_logger(__name__)


def combine(session: Session, job: JobRecord) -> tuple[JobState, bytes]:
    """Return the state that ``job`` ends in, and its result.

    The state is the job's own but where its summaries cannot be combined: such
    a job has failed, whatever its runs say.

    Args:
        session: the transaction in which the job ends.
        job: the job as it ends, in a terminal state.
    """
    spec = parse_job(JobRepository(session).envelope(job.job_id).payload)
    end = job_end(job)
    is_combined = job.state is JobState.COMPLETED and spec.recipient_key is None
    try:
        return job.state, result_bytes(spec, end, _parts(session, job) if is_combined else {})
    except CombinationError as error:
        _log.error("combination_failed", job_id=job.job_id, cause=str(error))
        return JobState.FAILED, result_bytes(spec, replace(end, state=JobState.FAILED), {})


def job_end(job: JobRecord) -> JobEnd:
    """Return how an ended job stands in its result: a statement counts with its summary."""
    runs = tuple(
        RunEnd(
            node=run.node,
            dataset=run.dataset,
            state=run.state,
            reason=run.reason,
            statement=run.statement if run.stored and run.state is RunState.RELEASED else "",
        )
        for run in job.runs
    )
    return JobEnd(state=job.state, runs=runs)


def _parts(session: Session, job: JobRecord) -> dict[str, Summary]:
    schema = manifest_of(session, job.analysis_digest).summary
    contents = SummaryRepository(session).contents(job.job_id)
    return {node: parse_summary(content, schema, released_only=True) for node, content in contents.items()}


def manifest_of(session: Session, digest: str) -> Manifest:
    """Return the manifest of the analysis with this bundle, also of one that is listed no more.

    Raises:
        HansaError: ``ANALYSIS_UNKNOWN``; it never was in the catalogue.
    """
    analysis = AnalysisRepository(session).of_digest(digest)
    if analysis is None:
        raise HansaError(Reason.ANALYSIS_UNKNOWN)
    return read_manifest(analysis.manifest)


@lru_cache(maxsize=64)
def read_manifest(data: bytes) -> Manifest:
    """Return the manifest in ``data``, which is read once and never changes."""
    return parse_manifest(data)
