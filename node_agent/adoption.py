"""A store that was restored from a backup takes over what it has forgotten of its own runs.

The coordinator has recorded what this node reported. Of a release it shows the
statement, and only one that this node has signed itself is believed: whatever
the coordinator says, no run is released that was not, and none twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.orm import Session

from hansa.contract.digests import digest
from hansa.contract.envelope import Signed, to_json
from hansa.contract.errors import HansaError
from hansa.contract.job import parse_job
from hansa.contract.receipt import Expected, subject_digest, verified_statement
from hansa.contract.statement import Statement
from hansa.contract.states import RUN_TERMINAL, RunState, adopt
from node_agent.audit.entries import run_adopted, store_reconciled
from node_agent.audit.log import append
from node_agent.store.models import RunRow, SummaryRow
from node_agent.store.outbox import is_reconciled, store_row

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A run as the coordinator has it; ``statement`` is what this node is said to have signed of its release."""

    run_id: str
    attempt: int
    execution: int
    state: RunState
    reason: str
    incident: str
    statement: Signed | None


@dataclass(frozen=True, slots=True)
class Author:
    """Whose statements are our own: the node's name and its public signing key."""

    node: str
    key: str


def is_written_for(session: Session, generation: int) -> bool:
    """Say whether what was recorded for a store of ``generation`` is to be adopted here.

    Not by a store that was never restored, nor by one that was restored again
    meanwhile: it may have forgotten what had not happened yet when this was
    written.
    """
    return not is_reconciled(session) and generation == store_row(session).generation


def adopt_run(session: Session, recorded: Recorded, author: Author, now: datetime) -> None:
    """Take over what is recorded of one run of this restored store."""
    run = session.get(RunRow, recorded.run_id)
    if run is None or run.attempt != recorded.attempt:
        _log.warning("recorded_run_passed_over", run_id=recorded.run_id, known=run is not None)
        return
    # No number may be given twice: a worker from before may still be at work under it. That of a
    # run whose message is out has yet to be given.
    given = recorded.execution + 1 if run.state == RunState.STAGING else recorded.execution
    run.execution = max(run.execution, given)
    state = adopt(RunState(run.state), recorded.state)
    if state is not recorded.state or state not in RUN_TERMINAL or state == run.state:
        return
    if state is RunState.RELEASED and not _adopt_release(session, run, recorded, author, now):
        return
    run.state, run.reason, run.incident, run.updated_at = state.value, recorded.reason, recorded.incident, now
    signed = "" if recorded.statement is None else digest(recorded.statement.payload)
    append(session, run_adopted(run, signed), now)
    _log.info("run_adopted", run_id=run.run_id, state=run.state)


def finish_adoption(session: Session, now: datetime) -> None:
    """Note that all that is recorded was taken over; from here on runs may start."""
    row = store_row(session)
    row.reconciled_generation = row.generation
    append(session, store_reconciled(row.generation), now)
    _log.info("store_reconciled", generation=row.generation)


def _adopt_release(session: Session, run: RunRow, recorded: Recorded, author: Author, now: datetime) -> bool:
    statement = _own_statement(run, recorded, author)
    if statement is None or recorded.statement is None:
        return False
    run.execution = max(run.execution, statement.predicate.execution)
    row = session.get(SummaryRow, run.run_id)
    if row is None:
        row = _forgotten(run, now)
        session.add(row)
    subject = bytes.fromhex(subject_digest(statement))
    # What waited in the airlock may be what left; if not, only the coordinator has it.
    kept = hashlib.sha256(row.summary).digest() == subject
    row.execution, row.statement = statement.predicate.execution, to_json(recorded.statement)
    row.outgoing, row.uploaded_at = (row.summary, None) if kept else (None, now)
    row.decision, row.decided_by, row.decided_at = "RELEASE", "", now
    row.decision_reason = "recorded before this store was restored from a backup"
    return True


def _own_statement(run: RunRow, recorded: Recorded, author: Author) -> Statement | None:
    if recorded.statement is None:
        return None
    try:
        expected = Expected(
            payload=run.payload,
            spec=parse_job(run.payload),
            node=author.node,
            round=run.round,
            attempt=run.attempt,
        )
        return verified_statement(recorded.statement, key=author.key, expected=expected)
    except HansaError as error:
        _log.error("recorded_release_not_ours", run_id=run.run_id, detail=str(error))
        return None


def _forgotten(run: RunRow, now: datetime) -> SummaryRow:
    """Return the row of a release whose bytes this store does not hold any more."""
    return SummaryRow(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=run.execution,
        summary=b"",
        digest=hashlib.sha256(b"").digest(),
        checks=[],
        created_at=now,
    )
