"""From what a run wrote to what may leave: parse, check, decide.

``judge`` is pure and says what the disclosure rules make of a summary;
``admit`` stores its verdict. A person's decision (``decide``) and the
machine's go the same way: decision, audit entry, event and state in one
transaction, before the first byte is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.states import RunEvent, RunState
from hansa.contract.summary import parse_summary, summary_bytes
from hansa.runtime.clock import Clock
from node_agent.audit.entries import Decider, Judgement, summary_released, summary_withheld
from node_agent.audit.log import append
from node_agent.catalogue import InstalledAnalysis
from node_agent.disclosure.allele_counts import Asked, Cleared, CountRules, clear_allele_counts
from node_agent.policy.policy import Policy
from node_agent.reporting import Bells, Reporter, advance
from node_agent.store.database import Database
from node_agent.store.models import RunRow, SummaryRow
from node_agent.store.outbox import append_event

_log = structlog.get_logger(__name__)

RELEASE: Final = "RELEASE"
WITHHOLD: Final = "WITHHOLD"
_MACHINE: Final = "disclosure-rules"


@dataclass(frozen=True, slots=True)
class Decision:
    """Who decided what on a summary, and why. ``decision`` is RELEASE or WITHHOLD."""

    decision: str
    by: str
    why: str
    decider: Decider = Decider.PERSON

    def judgement(self) -> Judgement:
        """Return the decision as the audit log has it."""
        return Judgement(self.decider, self.by, self.why)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say: ``summary`` is what may leave, None if nothing may.

    ``failure`` is set instead where the file is not a summary of this analysis.
    """

    summary: bytes | None
    checks: tuple[dict[str, Any], ...] = ()
    failure: RunReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The airlock of one node."""

    analyses: Mapping[str, InstalledAnalysis]
    policy: Callable[[], Policy]
    reporter: Reporter

    def judge(self, run: RunRow, collected: bytes, cohort: Mapping[str, int]) -> Verdict:
        """Return what may leave of the summary that a run wrote. Pure.

        Args:
            run: the run, for what its researcher asked.
            collected: the declared summary's bytes.
            cohort: people by sex, from the node's own snapshot.
        """
        analysis = self.analyses[run.analysis]
        rules = self.policy().disclosure
        try:
            summary = parse_summary(collected, analysis.manifest.summary, released_only=False)
            cleared = clear_allele_counts(
                summary,
                cohort=cohort,
                asked=Asked.from_parameters(run.parameters),
                rules=CountRules(min_cohort=rules.min_cohort, min_carriers=rules.min_carriers),
            )
        except HansaError:
            return Verdict(None, failure=RunReason.SUMMARY_INVALID)
        except Exception as error:
            # An analysis wrote this: whatever it trips, nothing leaves and the run ends. The
            # error's own text is not logged, it may hold a value.
            _log.error("summary_not_judged", run_id=run.run_id, error=type(error).__name__)
            return Verdict(None, failure=RunReason.SUMMARY_INVALID)
        checks = tuple(asdict(check) for check in cleared.checks)
        return Verdict(summary_bytes(cleared.summary) if isinstance(cleared, Cleared) else None, checks)

    def admit(self, session: Session, run: RunRow, verdict: Verdict, now: datetime) -> None:
        """Store ``verdict`` for a run in CHECKING; in the caller's transaction."""
        if verdict.failure is not None:
            self._end(session, run, RunEvent.FAIL, verdict.failure, now)
            return
        if verdict.summary is None:
            judgement = Judgement(Decider.RULES, _MACHINE, "disclosure rules")
            append(session, summary_withheld(run, None, judgement), now)
            self._end(session, run, RunEvent.WITHHOLD, RunReason.WITHHELD, now)
            return
        row = SummaryRow(
            run_id=run.run_id,
            attempt=run.attempt,
            execution=run.execution,
            summary=verdict.summary,
            digest=hashlib.sha256(verdict.summary).digest(),
            checks=list(verdict.checks),
            created_at=now,
            decision="",
            decided_by="",
            decision_reason="",
            decided_at=None,
            uploaded_at=None,
        )
        session.add(row)
        if self.policy().release.mode == "auto":
            self._release(session, run, row, Decision(RELEASE, _MACHINE, "release mode auto", Decider.RULES), now)
        else:
            advance(session, run, RunEvent.ASK_RELEASE, reporter=self.reporter, now=now)

    def decide(self, session: Session, run_id: str, choice: Decision, now: datetime) -> RunRow:
        """Carry out a person's decision on a waiting summary; return the run.

        Raises:
            HansaError: ``RUN_UNKNOWN``, or ``RELEASE_CONFLICT``: the run does
                not wait for a decision.
        """
        run, row = session.get(RunRow, run_id), session.get(SummaryRow, run_id)
        if run is None:
            raise HansaError(Reason.RUN_UNKNOWN)
        if row is None or run.state != RunState.AWAITING_RELEASE:
            raise HansaError(Reason.RELEASE_CONFLICT)
        if choice.decision == RELEASE:
            self._release(session, run, row, choice, now)
        else:
            _record(row, choice, now)
            append(session, summary_withheld(run, row.digest, choice.judgement()), now)
            self._end(session, run, RunEvent.WITHHOLD, RunReason.WITHHELD, now)
        return run

    def _release(self, session: Session, run: RunRow, row: SummaryRow, choice: Decision, now: datetime) -> None:
        _record(row, choice, now)
        append(session, summary_released(run, row.digest, choice.judgement()), now)
        append_event(session, self.reporter.released(run, row.digest, len(row.summary), now), now)
        advance(session, run, RunEvent.RELEASE, reporter=self.reporter, now=now)

    def _end(self, session: Session, run: RunRow, event: RunEvent, reason: RunReason, now: datetime) -> None:
        advance(session, run, event, reporter=self.reporter, now=now, reason=reason)


def _record(row: SummaryRow, choice: Decision, now: datetime) -> None:
    row.decision, row.decided_by, row.decision_reason, row.decided_at = choice.decision, choice.by, choice.why, now


@dataclass(frozen=True, slots=True, kw_only=True)
class Airlock:
    """The use cases behind ``hansa-node airlock``."""

    database: Database
    gate: Gate
    bells: Bells
    clock: Clock

    async def decide(self, run_id: str, choice: Decision) -> RunRow:
        """Release or withhold a waiting summary.

        Raises:
            HansaError: as ``Gate.decide``; ``PARAMETER_MISSING`` without a reason.
        """
        if not choice.why.strip():
            raise HansaError(Reason.PARAMETER_MISSING, "A decision needs a reason.", field="reason")
        now = self.clock()
        run = await self.database.run(lambda session: self.gate.decide(session, run_id, choice, now))
        self.bells.ring()
        return run
