"""Uploads released summaries until the coordinator has stored them.

Sends the bytes that the decision was about, the same at every try. Takes
``ReleasedSummary`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.runtime.clock import Clock
from node_agent.airlock.gate import RELEASE
from node_agent.airlock.released import ReleasedSummary, released_summary
from node_agent.reporting import Bells
from node_agent.store.database import Database
from node_agent.store.models import SummaryRow

_log = structlog.get_logger(__name__)

# Returns once the coordinator has stored the summary.
Send = Callable[[ReleasedSummary], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploader:
    """The spool of one node."""

    database: Database
    bells: Bells
    clock: Clock

    async def run(self, send: Send) -> None:
        """Send what was released, now and whenever the bell rings.

        Raises:
            Exception: what ``send`` raised: the coordinator is away or
                refused; the summary stays in the spool.
        """
        while True:
            self.bells.spool.clear()
            for released in await self.database.run(_pending):
                await send(released)
                await self._mark(released)
            await self.bells.spool.wait()

    async def _mark(self, released: ReleasedSummary) -> None:
        now = self.clock()
        await self.database.run(lambda session: _mark(session, released.run_id, now))
        _log.info("summary_uploaded", run_id=released.run_id, size=len(released.summary))


def _pending(session: Session) -> Sequence[ReleasedSummary]:
    rows = session.scalars(
        select(SummaryRow)
        .where(SummaryRow.decision == RELEASE, SummaryRow.uploaded_at.is_(None))
        .order_by(SummaryRow.decided_at)
    )
    return [released_summary(row) for row in rows]


def _mark(session: Session, run_id: str, now: datetime) -> None:
    session.get_one(SummaryRow, run_id).uploaded_at = now
