"""What is recorded of a node's runs, for a node that lost it. Works inside the caller's transaction, never commits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session

from coordinator.domain.frames import RecordedRun
from coordinator.store.job_models import RUNS, STATEMENTS, SUMMARIES
from hansa.contract.envelope import from_json
from hansa.contract.states import RunState

_OF_NODE: Final = (
    select(RUNS, STATEMENTS.c.envelope)
    .select_from(RUNS.outerjoin(STATEMENTS, STATEMENTS.c.run_id == RUNS.c.run_id))
    .where(RUNS.c.node == bindparam("node"))
    .order_by(RUNS.c.run_id)
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run with what an offer of it needs beside. ``is_cancelling``: its node was told that nobody waits for it."""

    run: RecordedRun
    job_id: str
    round: int
    is_cancelling: bool


def recorded_runs(session: Session, node: str) -> list[Recorded]:
    """Return every run of ``node``, as its reports have left it."""
    found = []
    for row in session.connection().execute(_OF_NODE, {"node": node}):
        state = RunState(row.state)
        run = RecordedRun(
            run_id=row.run_id,
            attempt=row.attempt,
            execution=row.execution,
            # A statement may come before the report of the state that goes with it.
            state=state if row.envelope is None else RunState.RELEASED,
            reason=row.reason,
            incident=row.incident,
            statement=None if row.envelope is None else from_json(row.envelope),
        )
        found.append(Recorded(run, row.job_id, row.round, state is RunState.CANCELLING))
    return found


def forget_unsigned(session: Session, node: str) -> None:
    """Drop summaries that came before their statements: a node that lost a release signs another one."""
    signed = select(STATEMENTS.c.run_id)
    of_node = select(RUNS.c.run_id).where(RUNS.c.node == node)
    session.connection().execute(
        delete(SUMMARIES).where(SUMMARIES.c.run_id.in_(of_node), SUMMARIES.c.run_id.not_in(signed))
    )
