"""What workers may ask of the agent: claim a run, give a sign of life, finish.

An execution is the node's fencing number: only the highest of a run may beat
or commit. A worker that was away too long is told so and kills what it runs.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.job import parse_job
from hansa.contract.limits import SUMMARY_BYTES
from hansa.contract.states import RunEvent, RunState
from hansa.runtime.clock import Clock
from node_agent.airlock.gate import Gate, Verdict
from node_agent.audit.entries import execution_started, run_stopped
from node_agent.audit.log import append
from node_agent.catalogue import InstalledAnalysis, is_sound
from node_agent.config import StateFolder
from node_agent.reporting import Bells, Reporter, advance
from node_agent.run_facts import facts_of
from node_agent.run_rules import STARTED, is_current, lost, may_claim, repeats_claim
from node_agent.situation import Situation
from node_agent.staging.snapshot import is_in_place
from node_agent.store.database import Database
from node_agent.store.models import DatasetRow, RunRow
from node_agent.store.outbox import is_reconciled

_log = structlog.get_logger(__name__)


class Outcome(enum.StrEnum):
    """How an execution ended, as the worker saw it."""

    SUMMARY = "summary"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # Through no fault of the analysis; ``reason`` is for the case that it was the last execution.
    LOST = "lost"


class Finish(BaseModel):
    """A worker's report of an execution's end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    execution: int
    outcome: Outcome
    reason: RunReason | None = None
    incident: str | None = Field(default=None, pattern=r"^[A-Z0-9-]{1,32}$")
    summary: str | None = Field(default=None, max_length=SUMMARY_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Executions:
    """The use cases behind the workers' part of the local API."""

    database: Database
    state: StateFolder
    analyses: Mapping[str, InstalledAnalysis]
    gate: Gate
    situation: Situation
    reporter: Reporter
    bells: Bells
    clock: Clock

    async def claim(self, run_id: str, worker: str, token: str = "") -> dict[str, Any]:
        """Give ``run_id`` to ``worker``; return all it needs to run it.

        Asked again with the same ``token`` the answer is the same: the first
        one may have been lost with the agent that gave it.

        Raises:
            HansaError: ``EXECUTION_SUPERSEDED``; the run is not to be started
                (any more), whatever the broker says.
        """
        asked = _Asked(run_id, worker, token)
        staged, analysis = await self.database.run(lambda session: self._needed(session, asked))
        sound = staged is not None and await asyncio.to_thread(is_in_place, Path(staged.folder), staged.snapshot)
        sound = sound and analysis is not None and await asyncio.to_thread(is_sound, analysis)
        now = self.clock()

        def work(session: Session) -> dict[str, Any]:
            run = _claimable(session, asked)
            dataset = _dataset_of(run, session)
            if run.state in STARTED:
                run.beat_at = now
                return self._claimed(run, dataset, analysis) if dataset and analysis else {}
            if self._stopped(session, run, now, starting=True):
                return {}
            # Another bundle of this name and version may have come into force since it was looked for.
            same = analysis is not None and analysis.digest == parse_job(run.payload).analysis.digest
            if dataset is None or analysis is None or not sound or not same:
                _log.error("run_not_staged", job_id=run.job_id, run_id=run_id, dataset=run.dataset, sound=sound)
                self._fail(session, run, now, RunReason.STAGING_FAILED)
                return {}
            run.worker, run.claim, run.beat_at = worker, token, now
            append(session, execution_started(run, dataset.snapshot), now)
            advance(session, run, RunEvent.START, reporter=self.reporter, now=now)
            return self._claimed(run, dataset, analysis)

        claimed = await self.database.run(work)
        self.bells.ring()
        if not claimed:
            raise HansaError(Reason.EXECUTION_SUPERSEDED)
        return claimed

    def _needed(self, session: Session, asked: _Asked) -> tuple[DatasetRow | None, InstalledAnalysis | None]:
        run = _claimable(session, asked)
        return _dataset_of(run, session), self.analyses.get(run.analysis)

    def _stopped(self, session: Session, run: RunRow, now: datetime, *, starting: bool = False) -> bool:
        """End a run whose trust is gone; return whether it was ended."""
        reason = self.situation.refusal(session, run, now, starting=starting)
        if reason is None:
            return False
        _log.warning("run_stopped", job_id=run.job_id, run_id=run.run_id, reason=reason.value)
        append(session, run_stopped(run, reason), now)
        self._fail(session, run, now, reason)
        return True

    def _fail(self, session: Session, run: RunRow, now: datetime, reason: RunReason, incident: str = "") -> None:
        advance(session, run, RunEvent.FAIL, reporter=self.reporter, now=now, reason=reason, incident=incident)

    def _lose(self, session: Session, run: RunRow, now: datetime, report: Finish) -> None:
        what = lost(facts_of(run), report.reason or RunReason.RUN_LOST)
        incident = report.incident or "" if what.reason else ""
        _log.warning("execution_lost", run_id=run.run_id, execution=run.execution, incident=report.incident)
        advance(
            session,
            run,
            what.event,
            reporter=self.reporter,
            now=now,
            reason=what.reason or "",
            incident=incident,
        )

    def _claimed(self, run: RunRow, dataset: DatasetRow, analysis: InstalledAnalysis) -> dict[str, Any]:
        return {
            "run_id": run.run_id,
            "job_id": run.job_id,
            "execution": run.execution,
            "work_dir": str(self.state.runs / run.run_id / str(run.execution)),
            "bundle_dir": str(analysis.folder),
            "snakefile": analysis.manifest.snakefile,
            "parameters": run.parameters,
            "snapshot_dir": dataset.folder,
            "limits": run.limits,
            "deadline": run.not_after.isoformat(),
        }

    async def beat(self, run_id: str, execution: int) -> bool:
        """Note that the execution lives; return whether it shall be cancelled.

        So it shall also where trust in what it runs is gone: the finish says why.

        Raises:
            HansaError: ``EXECUTION_SUPERSEDED``; kill it, its result is not wanted.
        """
        now = self.clock()

        def work(session: Session) -> bool:
            run = _current(session, run_id, execution)
            run.beat_at = now
            return run.state == RunState.CANCELLING or self.situation.refusal(session, run, now) is not None

        return await self.database.run(work)

    async def finish(self, report: Finish) -> None:
        """Take an execution's end: a summary to check, a failure, or a cancellation.

        Raises:
            HansaError: ``EXECUTION_SUPERSEDED``; too late, nothing was changed.
        """
        verdict = await self._verdict(report) if report.outcome is Outcome.SUMMARY else None
        now = self.clock()

        def work(session: Session) -> None:
            _check_reconciled(session)
            run = _current(session, report.run_id, report.execution)
            if run.state == RunState.CANCELLING:
                advance(
                    session,
                    run,
                    RunEvent.CONFIRM_CANCELLED,
                    reporter=self.reporter,
                    now=now,
                    reason=RunReason.CANCELLED,
                )
            elif self._stopped(session, run, now):
                return
            elif verdict is not None:
                advance(session, run, RunEvent.COLLECT, reporter=self.reporter, now=now)
                self.gate.admit(session, run, verdict, now)
            elif report.outcome is Outcome.LOST:
                self._lose(session, run, now, report)
            else:
                self._fail(session, run, now, report.reason or RunReason.ANALYSIS_FAILED, report.incident or "")

        await self.database.run(work)
        self.bells.ring()

    async def _verdict(self, report: Finish) -> Verdict | None:
        """Return what the rules say of the summary; None where its analysis is no longer approved."""
        run, cohort = await self.database.run(lambda session: _with_cohort(session, report))
        try:
            # Outside of the transaction: parsing and checking may take a while.
            return await asyncio.to_thread(self.gate.judge, run, (report.summary or "").encode(), cohort)
        except KeyError:
            return None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A worker's claim."""

    run_id: str
    worker: str
    token: str


def _check_reconciled(session: Session) -> None:
    if not is_reconciled(session):
        # Restored from a backup, and neither broker nor workers were: what they speak of may have ended long ago.
        raise HansaError(Reason.EXECUTION_SUPERSEDED, log="this store is not reconciled")


def _claimable(session: Session, asked: _Asked) -> RunRow:
    _check_reconciled(session)
    run = session.get(RunRow, asked.run_id)
    if run is None:
        raise HansaError(Reason.EXECUTION_SUPERSEDED)
    facts = facts_of(run)
    if not may_claim(facts) and not repeats_claim(facts, asked.worker, asked.token):
        raise HansaError(Reason.EXECUTION_SUPERSEDED)
    return run


def _dataset_of(run: RunRow, session: Session) -> DatasetRow | None:
    return session.get(DatasetRow, run.dataset)


def _current(session: Session, run_id: str, execution: int) -> RunRow:
    run = session.get(RunRow, run_id)
    if run is None or not is_current(facts_of(run), execution):
        raise HansaError(Reason.EXECUTION_SUPERSEDED)
    return run


def _with_cohort(session: Session, report: Finish) -> tuple[RunRow, Mapping[str, int]]:
    run = _current(session, report.run_id, report.execution)
    dataset = session.get_one(DatasetRow, run.dataset)
    return run, dataset.info["people_by_sex"]
