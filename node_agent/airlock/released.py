"""The one type that fits through the way out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

from node_agent.store.models import SummaryRow


@final
@dataclass(frozen=True, slots=True)
class ReleasedSummary:
    """The bytes that leave, with the decision that lets them.

    Made by ``released_summary`` alone; the upload takes no other type.
    """

    run_id: str
    attempt: int
    execution: int
    summary: bytes
    digest: bytes


class NotReleasedError(Exception):
    """The row holds no decision to release, or not of these bytes."""


def released_summary(row: SummaryRow) -> ReleasedSummary:
    """Return what may leave of ``row``.

    Raises:
        NotReleasedError: nobody has decided to release it, or the bytes are
            not those that the decision was about.
    """
    if row.decision != "RELEASE" or hashlib.sha256(row.summary).digest() != row.digest:
        raise NotReleasedError(row.run_id)
    return ReleasedSummary(row.run_id, row.attempt, row.execution, row.summary, row.digest)
