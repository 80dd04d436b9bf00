"""The analysis catalogue: what may be asked."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.services.nodes import Act
from coordinator.store.audit import AuditRepository
from coordinator.store.catalogue import Analysis, AnalysisRepository
from hansa.contract.digests import DIGEST
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import ANALYSIS_NAME, ANALYSIS_VERSION
from hansa.contract.manifest import parse_manifest


def make_analysis(manifest: bytes, digest: str) -> Analysis:
    """Return the analysis that ``manifest`` declares, in the bundle of this digest.

    Raises:
        HansaError: ``MANIFEST_INVALID`` or ``MALFORMED``, with the field.
    """
    parsed = parse_manifest(manifest)
    if not DIGEST.fullmatch(digest):
        raise HansaError(Reason.MALFORMED, "A bundle's digest is sha256: and 64 hexadecimal digits.", field="digest")
    return Analysis(parsed.name, parsed.version, digest, manifest)


def publish_analysis(session: Session, analysis: Analysis, act: Act) -> Analysis:
    """Put ``analysis`` in the catalogue; the same bytes again change nothing.

    Raises:
        HansaError: ``ANALYSIS_EXISTS``; the version has other bytes.
    """
    analyses = AnalysisRepository(session)
    known = analyses.get(analysis.name, analysis.version)
    if known is not None:
        if known != analysis:
            raise HansaError(Reason.ANALYSIS_EXISTS, field="manifest")
        return known
    analyses.add(analysis, published_by=act.actor, now=act.now)
    subject = f"{analysis.name}@{analysis.version} {analysis.digest}"
    AuditRepository(session).append(at=act.now, actor=act.actor, action="analysis_published", subject=subject)
    return analysis


def find_analysis(session: Session, name: str, version: str) -> Analysis:
    """Return the analysis; the newest version where ``version`` is empty.

    Raises:
        HansaError: ``ANALYSIS_UNKNOWN``.
    """
    well_formed = ANALYSIS_NAME.fullmatch(name) and (not version or ANALYSIS_VERSION.fullmatch(version))
    analyses = AnalysisRepository(session)
    found = (analyses.get(name, version) if version else analyses.newest(name)) if well_formed else None
    if found is None:
        raise HansaError(Reason.ANALYSIS_UNKNOWN, field="version" if version else "name")
    return found
