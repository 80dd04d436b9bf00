"""What the store holds, in numbers: for the metrics. Works inside the caller's transaction, never commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.job_models import COMMANDS, JOBS, NODES, RUNS


@dataclass(frozen=True, slots=True)
class Outbox:
    """A node's commands that it has not acknowledged."""

    depth: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts by state, and by node its outbox, whether it is connected, and its clock."""

    jobs: Mapping[str, int]
    runs: Mapping[str, int]
    outboxes: Mapping[str, Outbox]
    connected: Mapping[str, bool]
    clocks: Mapping[str, int]


def read_figures(session: Session) -> Figures:
    """Return what the store holds now."""
    connection = session.connection()
    jobs = connection.execute(select(JOBS.c.state, func.count()).group_by(JOBS.c.state)).all()
    runs = connection.execute(select(RUNS.c.state, func.count()).group_by(RUNS.c.state)).all()
    waiting = select(COMMANDS.c.node, func.count(), func.min(COMMANDS.c.created_at)).where(COMMANDS.c.acked.is_(False))
    outboxes = connection.execute(waiting.group_by(COMMANDS.c.node)).all()
    nodes = connection.execute(select(NODES.c.node, NODES.c.connected, NODES.c.clock_ahead_seconds)).all()
    return Figures(
        jobs={state: count for state, count in jobs},  # noqa: C416 - rows are Row objects, not pairs
        runs={state: count for state, count in runs},  # noqa: C416
        outboxes={node: Outbox(depth, oldest) for node, depth, oldest in outboxes},
        connected={row.node: row.connected for row in nodes},
        clocks={row.node: row.clock_ahead_seconds or 0 for row in nodes if row.connected},
    )
