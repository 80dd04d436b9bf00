"""What an ended job's released summaries say together, stored once."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.records import JobRecord
from coordinator.domain.result import CombinationError, result_bytes
from coordinator.store.catalogue import AnalysisRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.summaries import SummaryRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import parse_job
from hansa.contract.manifest import Manifest, parse_manifest
from hansa.contract.states import JobState
from hansa.contract.summary import Summary, parse_summary

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
    try:
        parts = _parts(session, job) if job.state is JobState.COMPLETED else {}
        return job.state, result_bytes(job, spec, parts)
    except CombinationError as error:
        _log.error("combination_failed", job_id=job.job_id, cause=str(error))
        return JobState.FAILED, result_bytes(replace(job, state=JobState.FAILED), spec, {})


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
