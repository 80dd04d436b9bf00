"""The analysis catalogue: what may be asked."""

from __future__ import annotations

from sqlalchemy.orm import Session

from coordinator.store.catalogue import Analysis, AnalysisRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import ANALYSIS_NAME, ANALYSIS_VERSION


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
