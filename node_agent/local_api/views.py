"""What the agent shows to its operator: reads, no decisions."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.contract.states import RunState
from hansa.contract.waiting import WAITS_FOR, since
from hansa.runtime.drain import DrainFile
from node_agent.airlock.decisions import decisions_on
from node_agent.config import StateFolder
from node_agent.store.database import Database
from node_agent.store.models import ApprovalRow, DatasetRow, RunRow, SummaryRow
from node_agent.store.outbox import is_reconciled, store_row


def run_json(run: RunRow) -> dict[str, Any]:
    """Return a run as the API shows it; ``updated_at`` is since when it is in its state."""
    words = WAITS_FOR.get(RunState(run.state))
    return {
        "run_id": run.run_id,
        "job_id": run.job_id,
        "analysis": run.analysis,
        "submitter": run.submitter,
        "dataset": run.dataset,
        "state": run.state,
        "reason": run.reason,
        "incident": run.incident,
        "attempt": run.attempt,
        "execution": run.execution,
        "updated_at": run.updated_at.isoformat(),
        "waits_for": f"{words} {since(run.updated_at)}" if words else "",
    }


def dataset_json(row: DatasetRow) -> dict[str, Any]:
    """Return a dataset as the API shows it."""
    return {
        "id": row.dataset_id,
        "snapshot": row.snapshot,
        "build": row.build,
        "people": row.info["people"],
        "variants": row.info["variants"],
        "skipped": row.info["skipped"],
        "added_at": row.added_at.isoformat(),
    }


def approval_json(row: ApprovalRow) -> dict[str, Any]:
    """Return an approval as the API shows it; ``says`` is what its data holder signed."""
    return {
        "id": row.approval_id,
        "kind": row.kind,
        "approver": row.approver,
        "digest": row.digest,
        "added_at": row.added_at.isoformat(),
        "revoked_at": None if row.revoked_at is None else row.revoked_at.isoformat(),
        "revoked_by": row.revoked_by,
        "says": json.loads(row.payload),
    }


async def _no_logs() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Reads of the store.

    ``link`` returns the link's state, reason and since; ``trust``
    what it believes; ``logs`` how far the
    audit logs are witnessed, and the alarm if the coordinator's has forked;
    ``disk`` whether there is room for new work; ``unsent_bytes`` how much of
    events the coordinator does not have.
    """

    node: str
    federation: str
    state: StateFolder
    database: Database
    link: Callable[[], Mapping[str, Any]]
    policy_digest: Callable[[], str]
    trust: Callable[[], Mapping[str, Any]]
    logs: Callable[[], Awaitable[Mapping[str, Any]]] = _no_logs
    disk: Callable[[], Mapping[str, Any]] = dict
    unsent_bytes: Callable[[], int] = int

    async def status(self) -> dict[str, Any]:
        """Return how the agent stands."""
        counts, store = await self.database.run(_figures)
        drain = DrainFile(self.state.path)
        since = drain.since()
        return {
            "node": self.node,
            "federation": self.federation,
            **self.link(),
            "draining": drain.is_set(),
            "draining_since": since.isoformat() if since else None,
            "runs": counts,
            "store": store,
            "policy_digest": self.policy_digest(),
            "trust": self.trust(),
            "disk": self.disk(),
            "unsent_bytes": self.unsent_bytes(),
            **await self.logs(),
            "version": version("hansa"),
        }

    async def runs(self) -> list[dict[str, Any]]:
        """Return all runs, the newest first."""
        return await self.database.run(lambda session: [run_json(run) for run in _runs(session)])

    async def run(self, run_id: str) -> dict[str, Any]:
        """Return one run whole.

        Raises:
            HansaError: ``RUN_UNKNOWN``.
        """

        def read(session: Session) -> dict[str, Any]:
            run = _get(session, run_id)
            log = self.state.runs / run.run_id / f"{run.execution}.ctl" / "log"
            return {**run_json(run), "parameters": run.parameters, "log_path": str(log)}

        return await self.database.run(read)

    async def waiting(self) -> list[dict[str, Any]]:
        """Return the runs whose summaries wait for a decision."""

        def read(session: Session) -> list[dict[str, Any]]:
            return [run_json(run) for run in _runs(session) if run.state == RunState.AWAITING_RELEASE]

        return await self.database.run(read)

    async def summary(self, run_id: str) -> dict[str, Any]:
        """Return a summary in the airlock: exactly what would leave, and the checks.

        Raises:
            HansaError: ``RUN_UNKNOWN``; no such run, or nothing of it is here.
        """

        def read(session: Session) -> dict[str, Any]:
            run, row = _get(session, run_id), session.get(SummaryRow, run_id)
            if row is None:
                raise HansaError(Reason.RUN_UNKNOWN, "Nothing of this run is in the airlock.")
            return {
                "run": run_json(run),
                "checks": row.checks,
                "summary": json.loads(row.summary),
                "digest": f"sha256:{row.digest.hex()}",
                "node": self.node,
                "release_class": row.release_class,
                "decisions": [
                    {"checker": one.checker, "decision": one.decision, "at": one.decided_at.isoformat()}
                    for one in decisions_on(session, run_id)
                ],
                "decision": row.decision,
                "decided_by": row.decided_by,
                "decision_reason": row.decision_reason,
            }

        return await self.database.run(read)


def _runs(session: Session) -> Sequence[RunRow]:
    return session.scalars(select(RunRow).order_by(RunRow.created_at.desc())).all()


def _get(session: Session, run_id: str) -> RunRow:
    run = session.get(RunRow, run_id)
    if run is None:
        raise HansaError(Reason.RUN_UNKNOWN)
    return run


def _figures(session: Session) -> tuple[dict[str, int], dict[str, Any]]:
    return _counts(session), _store(session)


def _store(session: Session) -> dict[str, Any]:
    """Return the store's generation, and whether it may start and release anything after a restore."""
    return {"generation": store_row(session).generation, "reconciled": is_reconciled(session)}


def _counts(session: Session) -> dict[str, int]:
    rows = session.execute(select(RunRow.state, func.count()).group_by(RunRow.state))
    return {state: count for state, count in rows}  # noqa: C416 - rows are Row objects, not pairs
