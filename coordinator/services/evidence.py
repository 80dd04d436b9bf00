"""What a job's result rests on, as files (docs/reference/evidence.md).

The coordinator vouches for none of it: the reader verifies every file from a
root of the trust repository that it has pinned itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Targets

from coordinator.domain.authorisation import READ_RESULT, SEE_EVIDENCE
from coordinator.services.combination import job_end
from coordinator.services.desk import Turn
from coordinator.services.jobs import Asker, job_for, result_of
from coordinator.services.trust import state_in_force
from coordinator.store.jobs import JobRepository
from coordinator.store.statements import StatementRepository
from coordinator.store.summaries import SummaryRepository
from coordinator.store.trust import TrustRepository
from hansa.contract.envelope import to_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.listing import MANIFEST_FILE, parse_listing
from hansa.contract.trust_paths import analysis_of
from hansa.sdk.evidence import JOB_FILE, METADATA, RESULT_FILE, TARGETS, statement_file, summary_file
from hansa.trust.files import ROOT, SNAPSHOT, TIMESTAMP, metadata_name
from hansa.trust.files import TARGETS as TARGETS_ROLE

# What the audit logs prove of a job by now, as files.
LogEvidence = Callable[[Session, str, datetime], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of one job.

    ``files`` has the small ones by name; ``summaries`` the runs whose
    summaries follow, by the name of the file.
    """

    files: Mapping[str, bytes]
    summaries: Mapping[str, str]


def job_evidence(session: Session, job_id: str, asker: Asker, turn: Turn, logs: LogEvidence) -> Evidence:
    """Return the evidence of an ended job; an auditor's is without summaries and figures.

    Raises:
        HansaError: ``JOB_UNKNOWN``; ``PERMISSION_DENIED``; ``JOB_NOT_ENDED``;
            ``RESULT_PURGED``.
    """
    job = job_for(SEE_EVIDENCE, session, job_id, asker)
    jobs = JobRepository(session)
    result = result_of(session, job)
    # What came after the end is in no result.
    in_result = {run.node for run in job_end(job).runs if run.statement and run.statement.encode() in result}
    statements = {
        node: found for node, found in StatementRepository(session).of_job(job.job_id).items() if node in in_result
    }
    reads = asker.may(READ_RESULT, job.submitter)
    files = {
        JOB_FILE: to_json(jobs.envelope(job.job_id)),
        RESULT_FILE: result if reads else without_figures(result),
        **{statement_file(node): found.envelope for node, found in statements.items()},
        **trust_files(session),
        **logs(session, job.job_id, turn.now),
    }
    return Evidence(files, {summary_file(node): found.run_id for node, found in statements.items()} if reads else {})


def without_figures(result: bytes) -> bytes:
    """Return a result that tells how the runs ended, and no figure: each country's are its summary's."""
    return json.dumps({**json.loads(result), "variants": []}, separators=(",", ":")).encode()


def summary_content(session: Session, run_id: str) -> bytes:
    """Return the stored summary of a run.

    Raises:
        HansaError: ``RUN_UNKNOWN``.
    """
    content = SummaryRepository(session).content(run_id)
    if content is None:
        raise HansaError(Reason.RUN_UNKNOWN)
    return content


def trust_files(session: Session) -> dict[str, bytes]:
    """Return the trust repository in force as evidence has it: all but the files of the bundles, with the manifests."""
    mirror, state = TrustRepository(session), state_in_force(session)
    wanted = [(ROOT, version) for version in range(1, state.root_version + 1)]
    wanted += [(role, state.version_of(role)) for role in (TARGETS_ROLE, SNAPSHOT, TIMESTAMP)]
    found = {(role, version): mirror.metadata(role, version) for role, version in wanted}
    files = {
        METADATA + metadata_name(role, version): content
        for (role, version), content in found.items()
        if content is not None
    }
    targets = found[(TARGETS_ROLE, state.version_of(TARGETS_ROLE))]
    for sha256 in () if targets is None else _digests(mirror, targets):
        content = mirror.target(sha256)
        if content is not None:
            files[TARGETS + sha256] = content
    return files


def _digests(mirror: TrustRepository, targets: bytes) -> frozenset[str]:
    listed = Metadata[Targets].from_bytes(targets).signed.targets
    named = {path: info.hashes["sha256"] for path, info in listed.items() if not path.startswith("blobs/")}
    listings = [mirror.target(sha256) for path, sha256 in named.items() if analysis_of(path) is not None]
    manifests = {_manifest(listing) for listing in listings if listing is not None}
    return frozenset(named.values()) | manifests - {""}


def _manifest(listing: bytes) -> str:
    """Return the SHA-256 (hex) of the manifest in a bundle's listing; empty where it cannot be read."""
    try:
        return parse_listing(listing)[MANIFEST_FILE].sha256
    except HansaError:
        return ""
