"""What the node's store holds, in numbers: for the metrics. Works inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from node_agent.store.models import EventRow, RunRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Runs by state and reason, and the events that the coordinator has not acknowledged."""

    runs: Mapping[tuple[str, str], int]
    outbox_depth: int
    outbox_oldest: datetime | None


def read_figures(session: Session, acked: int) -> Figures:
    """Return what the store holds now; events up to ``acked`` are acknowledged."""
    rows = session.execute(select(RunRow.state, RunRow.reason, func.count()).group_by(RunRow.state, RunRow.reason))
    waiting = select(func.count(), func.min(EventRow.created_at)).where(EventRow.seq > acked)
    depth, oldest = session.execute(waiting).one()
    return Figures(
        runs={(state, reason): count for state, reason, count in rows}, outbox_depth=depth, outbox_oldest=oldest
    )
