"""From what a run wrote to what may leave: parse, check, decide.

``judge`` is pure and says what the disclosure rules make of a summary;
``admit`` stores its verdict. The decision of people (``decide``) and the
machine's go the same way: audit leaf, signed statement, event and state in
one transaction, before the first byte is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy.orm import Session

from hansa.contract.decision import parse_decision
from hansa.contract.envelope import Signed, to_json
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.job import parse_job
from hansa.contract.release import ReleaseClass, people_needed, stricter
from hansa.contract.statement import Decider as Signatory
from hansa.contract.statement import LogPlace
from hansa.contract.states import RunEvent, RunState
from hansa.contract.summary import parse_summary, summary_bytes
from hansa.runtime.clock import Clock
from node_agent.airlock.decisions import decisions_on, standing_decisions, store_decision, verified_decision
from node_agent.airlock.statements import BY_RULES, Notary, Outgoing, leaving
from node_agent.audit.entries import (
    Decider,
    Judgement,
    release_decided,
    run_stopped,
    summary_released,
    summary_withheld,
)
from node_agent.audit.log import append
from node_agent.catalogue import InstalledAnalysis
from node_agent.disclosure.allele_counts import Asked, Cleared, CountRules, clear_allele_counts
from node_agent.policy.policy import Policy
from node_agent.reporting import Bells, Reporter, advance
from node_agent.store.database import Database
from node_agent.store.models import AuditLeafRow, ReleaseDecisionRow, RunRow, SummaryRow
from node_agent.store.outbox import append_event, is_reconciled

_log = structlog.get_logger(__name__)

RELEASE: Final = "RELEASE"
WITHHOLD: Final = "WITHHOLD"
_MACHINE: Final = "disclosure-rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What becomes of a summary: ``by`` and ``why`` are for the audit log, ``deciders`` for the statement."""

    decision: str
    by: str
    why: str
    decider: Decider
    deciders: tuple[Signatory, ...]
    # To the researcher, of a summary that is kept.
    told: RunReason = RunReason.WITHHELD

    def judgement(self) -> Judgement:
        """Return the decision as the audit log has it."""
        return Judgement(self.decider, self.by, self.why)


_BY_RULES: Final = Choice(
    decision=RELEASE, by=_MACHINE, why="release class auto", decider=Decider.RULES, deciders=(BY_RULES,)
)
_BY_REVOCATION: Final = Choice(
    decision=WITHHOLD, by=_MACHINE, why="trust in the run was revoked", decider=Decider.RULES, deciders=(BY_RULES,)
)


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
    notary: Notary
    # Why an admitted run may not be released any more; None if it may.
    refusal: Callable[[Session, RunRow, datetime], RunReason | None]

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
        """Store ``verdict`` for a run in CHECKING; in the caller's transaction.

        Raises:
            HansaError: ``EXECUTION_SUPERSEDED``; this store was restored from
                a backup and may have forgotten that the run has ended.
        """
        if not is_reconciled(session):
            raise HansaError(Reason.EXECUTION_SUPERSEDED, log="this store is not reconciled")
        if is_late(run, now):
            self._end(session, run, RunEvent.EXPIRE, RunReason.DEADLINE_PASSED, now)
            return
        if verdict.failure is not None:
            self._end(session, run, RunEvent.FAIL, verdict.failure, now)
            return
        if verdict.summary is None:
            judgement = Judgement(Decider.RULES, _MACHINE, "disclosure rules")
            append(session, summary_withheld(run, None, judgement), now)
            self._end(session, run, RunEvent.WITHHOLD, RunReason.WITHHELD, now)
            return
        spec = parse_job(run.payload)
        release_class = stricter(spec.release_class, self._policy_class())
        row = _waiting(run, verdict.summary, verdict.checks, release_class, now)
        session.add(row)
        session.flush()
        if people_needed(release_class):
            advance(session, run, RunEvent.ASK_RELEASE, reporter=self.reporter, now=now)
        else:
            self._release(session, run, row, _BY_RULES, now)

    def _policy_class(self) -> ReleaseClass:
        return ReleaseClass(self.policy().release.mode)

    def decide(self, session: Session, run_id: str, signed: Signed, now: datetime) -> RunRow:
        """Take an output checker's signed decision on a waiting summary; return the run.

        One WITHHOLD keeps the summary here for good; it leaves once as many
        different people as its class asks have said RELEASE. The same decision
        again changes nothing.

        Raises:
            HansaError: ``RUN_UNKNOWN``; ``RELEASE_CONFLICT``, the run does not
                wait for a decision any more, or the person has decided
                otherwise;
                ``NODE_NOT_RECONCILED``; whatever ``verified_decision`` refuses.
        """
        if not is_reconciled(session):
            raise HansaError(Reason.NODE_NOT_RECONCILED)
        run, row = session.get(RunRow, run_id), session.get(SummaryRow, run_id)
        if run is None:
            raise HansaError(Reason.RUN_UNKNOWN)
        if row is None or run.state != RunState.AWAITING_RELEASE or is_late(run, now):
            raise HansaError(Reason.RELEASE_CONFLICT)
        directory = self.notary.view().directory
        decision = verified_decision(signed, directory, node=self.notary.node, run=run, row=row)
        before = len(decisions_on(session, run_id))
        stored = store_decision(session, decision, signed, now)
        if len(decisions_on(session, run_id)) > before:
            append(session, release_decided(run, decision, stored.digest), now)
        if decision.decision == WITHHOLD:
            self._withhold(session, run, row, _by_people([stored], decision.reason), now)
            return run
        revoked = self.refusal(session, run, now)
        if revoked is not None:
            # A person, an analysis or an approval was revoked while the summary waited.
            append(session, run_stopped(run, revoked), now)
            self._withhold(session, run, row, replace(_BY_REVOCATION, told=revoked), now)
            return run
        # The policy may have become stricter since; never less strict.
        needed = people_needed(stricter(ReleaseClass(row.release_class), self._policy_class()))
        said = standing_decisions(session, directory, node=self.notary.node, run=run, row=row)
        if len(said) >= needed:
            self._release(session, run, row, _by_people(said, decision.reason), now)
        return run

    def _release(self, session: Session, run: RunRow, row: SummaryRow, choice: Choice, now: datetime) -> None:
        """Make the leaf, the statement and the event; whatever of these fails, the transaction is undone."""
        _record(row, choice, now)
        spec = parse_job(run.payload)
        content = leaving(spec, run.payload, row)
        index = append(session, summary_released(run, hashlib.sha256(content).digest(), choice.judgement()), now)
        place = LogPlace(index=index, leaf_hash=session.get_one(AuditLeafRow, index).leaf_hash.hex())
        outgoing = Outgoing(
            payload=run.payload,
            spec=spec,
            run=run,
            content=content,
            checks=row.checks,
            release_class=stricter(ReleaseClass(row.release_class), self._policy_class()),
            deciders=choice.deciders,
            log=place,
        )
        statement = self.notary.sign(session, outgoing, now)
        row.outgoing, row.statement = content, to_json(statement)
        append_event(session, self.reporter.released(run, content, statement, now), now)
        advance(session, run, RunEvent.RELEASE, reporter=self.reporter, now=now)

    def _withhold(self, session: Session, run: RunRow, row: SummaryRow, choice: Choice, now: datetime) -> None:
        _record(row, choice, now)
        append(session, summary_withheld(run, row.digest, choice.judgement()), now)
        self._end(session, run, RunEvent.WITHHOLD, choice.told, now)

    def _end(self, session: Session, run: RunRow, event: RunEvent, reason: RunReason, now: datetime) -> None:
        advance(session, run, event, reporter=self.reporter, now=now, reason=reason)


def is_late(run: RunRow, now: datetime) -> bool:
    """Say whether the run's deadline has passed, which nobody may have noticed yet: what is released then does not hold."""
    return run.not_after <= now


def _waiting(
    run: RunRow, summary: bytes, checks: Sequence[dict[str, Any]], release_class: ReleaseClass, now: datetime
) -> SummaryRow:
    return SummaryRow(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=run.execution,
        summary=summary,
        digest=hashlib.sha256(summary).digest(),
        checks=list(checks),
        created_at=now,
        decision="",
        decided_by="",
        decision_reason="",
        decided_at=None,
        uploaded_at=None,
        release_class=release_class.value,
        outgoing=None,
        statement=None,
    )


def _by_people(said: Sequence[ReleaseDecisionRow], why: str) -> Choice:
    return Choice(
        decision=said[0].decision,
        by=", ".join(row.checker for row in said),
        why=why,
        decider=Decider.PERSON,
        deciders=tuple(Signatory(by=row.checker, decision=row.digest) for row in said),
    )


def _record(row: SummaryRow, choice: Choice, now: datetime) -> None:
    row.decision, row.decided_by, row.decision_reason, row.decided_at = choice.decision, choice.by, choice.why, now


@dataclass(frozen=True, slots=True, kw_only=True)
class Airlock:
    """The use cases behind ``hansa-node airlock``."""

    database: Database
    gate: Gate
    bells: Bells
    clock: Clock

    async def decide(self, run_id: str, decision: str, signed: Signed) -> RunRow:
        """Take a signed decision on a waiting summary.

        Raises:
            HansaError: as ``Gate.decide``; ``DECISION_INVALID``, the signed
                decision is not the ``decision`` that was called for, or has
                no reason.
        """
        made = parse_decision(signed.payload)
        if not made.reason.strip():
            raise HansaError(Reason.DECISION_INVALID, "A decision needs a reason.", field="reason")
        if made.decision != decision:
            raise HansaError(Reason.DECISION_INVALID, f"The signed decision is not {decision}.", field="decision")
        now = self.clock()
        run = await self.database.run(lambda session: self.gate.decide(session, run_id, signed, now))
        _log.info("release_decided", run_id=run_id, decision=decision, state=run.state)
        self.bells.ring()
        return run
