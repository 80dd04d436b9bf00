"""What may be asked, and whom."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.domain.authorisation import SEE_NODE_REASON, Bearer, Ownership, is_allowed
from coordinator.store.catalogue import Analysis, AnalysisRepository
from coordinator.store.nodes import Node, NodeRepository
from coordinator.store.paging import Page, Slice
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


def list_nodes(session: Session, page: Page, roles: AbstractSet[Bearer], now: datetime) -> Slice[Node]:
    """Return nodes by name as somebody with ``roles`` may see them.

    Everybody sees who is a member, connected, suspended or quarantined: it is
    what their jobs wait for. Why, only operators and auditors see.
    """
    nodes = NodeRepository(session)
    nodes.expire_invitations(now)
    found = nodes.page(page)
    if is_allowed(roles, SEE_NODE_REASON, Ownership.OTHERS):
        return found
    return Slice(tuple(replace(node, reason="") for node in found.items), found.last)
