"""What the store knows of a run, as the rules want it."""

from __future__ import annotations

from hansa.contract.states import RunState
from node_agent.run_rules import RunFacts
from node_agent.store.models import RunRow


def facts_of(run: RunRow) -> RunFacts:
    """Return what the rules have to know of ``run``."""
    return RunFacts(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=run.execution,
        state=RunState(run.state),
        not_after=run.not_after,
        created_at=run.created_at,
        enqueued_at=run.enqueued_at,
        beat_at=run.beat_at,
        worker=run.worker,
        claim=run.claim,
    )
