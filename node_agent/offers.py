"""What becomes of an offer: stored, judged by what the node itself knows, answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.ids import is_run_id
from hansa.contract.job import JobSpec, parse_job
from hansa.contract.states import RunEvent, RunState
from node_agent.airlock.decisions import forget_decisions
from node_agent.approval_records import admit_under, forget_admission
from node_agent.audit.entries import offer_accepted, offer_declined, offer_waits
from node_agent.audit.log import append
from node_agent.policy.admission import Admitted, Offered, Seen, admit, identify
from node_agent.reporting import Reporter, advance
from node_agent.situation import Situation, envelope_digest, seen_before, signed_job
from node_agent.store.ledger import enter
from node_agent.store.models import RunRow, SummaryRow
from node_agent.store.outbox import was_restored
from node_agent.telling import tell_run

_log = structlog.get_logger(__name__)
ACTIVE = (RunState.STAGING, RunState.RUNNING, RunState.CHECKING, RunState.CANCELLING)
_MAY_START_AGAIN = (RunState.DECLINED, RunState.FAILED, RunState.EXPIRED, RunState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOffer:
    """An offer as it came: the job's signed bytes, the run's name, and passports sent later."""

    run_id: str
    job_id: str
    round: int
    attempt: int
    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes
    addenda: Sequence[Signed] = ()

    @property
    def signed(self) -> Signed:
        """The job's envelope."""
        return Signed(self.payload_type, self.payload, self.key_id, self.signature)

    @property
    def offered(self) -> Offered:
        """The offer as the rules take it."""
        return Offered(
            run_id=self.run_id, job_id=self.job_id, round=self.round, signed=self.signed, addenda=self.addenda
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """Receives offers inside the transaction that moves the command cursor."""

    situation: Situation
    reporter: Reporter

    def receive(self, session: Session, offer: SignedOffer, now: datetime) -> None:
        """Store the run and decide on it; a repeat of an offer changes nothing.

        A coordinator that was restored from a backup is told how the run stands.

        A higher attempt starts the run again only where the last one ended
        without a decision on a summary: a node releases once, whatever it is
        asked.

        Raises:
            HansaError: ``PROTOCOL_VIOLATION``; the run's name is none. It
                becomes the name of a folder.
        """
        if not is_run_id(offer.run_id):
            raise HansaError(Reason.PROTOCOL_VIOLATION, log="an offer's run id is none")
        known = session.get(RunRow, offer.run_id)
        if known is not None and not _may_follow(known, offer):
            _log.info(
                "offer_not_followed", job_id=known.job_id, run_id=known.run_id, state=known.state, attempt=offer.attempt
            )
            if was_restored(session) and (offer.attempt, offer.payload) == (known.attempt, known.payload):
                # Its store was restored from a backup, and it has forgotten what it was told.
                tell_run(session, known, self.reporter, now)
            return
        offered = offer.offered
        # Attempts count from one; of any other a release could not be signed, and the run would be tried in vain.
        spec = identify(offered, self.situation.site) if offer.attempt >= 1 else None
        run = _row(offer, spec, now)
        if known is not None:
            _forget(session, known, run)
        session.add(run)
        session.flush()
        if spec is None:
            self._decline(session, run, None, RunReason.JOB_INVALID, now)
        else:
            self._judge(session, run, spec, offered, run_known=known is not None)

    def _judge(self, session: Session, run: RunRow, spec: JobSpec, offered: Offered, *, run_known: bool) -> None:
        now = run.created_at
        seen = seen_before(session, spec, offered.signed, run_known=run_known)
        view = replace(self.situation.view(session, spec, now), seen=seen)
        outcome = admit(spec, offered, view)
        if seen is Seen.NEVER and (isinstance(outcome, Admitted) or outcome.authentic):
            # Only what its submitter has signed: who else sends bytes could take the true job's place.
            enter(session, spec, envelope_digest(offered.signed))
        if isinstance(outcome, Admitted):
            self._accept(session, run, spec, outcome, now)
        else:
            self._decline(session, run, spec, outcome.reason, now)

    def _accept(self, session: Session, run: RunRow, spec: JobSpec, outcome: Admitted, now: datetime) -> None:
        run.dataset = spec.dataset_at(self.situation.site.node).dataset
        run.parameters = dict(outcome.parameters)
        run.limits = outcome.limits.model_dump(mode="json")
        if outcome.approval is None:
            append(session, offer_waits(run, spec.directory_version), now)
            _log.info("offer_waits", run_id=run.run_id, job_id=run.job_id)
            advance(session, run, RunEvent.ASK_APPROVAL, reporter=self.reporter, now=now)
            return
        admit_under(session, run, outcome.approval, now)
        entry = offer_accepted(run, outcome.approval.approval_id, spec.directory_version, outcome.passport)
        append(session, entry, now)
        _log.info("offer_accepted", run_id=run.run_id, job_id=run.job_id)
        advance(session, run, RunEvent.ACCEPT, reporter=self.reporter, now=now)
        advance(session, run, RunEvent.QUEUE, reporter=self.reporter, now=now)

    def _decline(self, session: Session, run: RunRow, spec: JobSpec | None, reason: RunReason, now: datetime) -> None:
        dataset = spec.dataset_at(self.situation.site.node).dataset if spec else ""
        append(session, offer_declined(run, spec, dataset, reason), now)
        _log.info("offer_declined", job_id=run.job_id, run_id=run.run_id, reason=reason.value)
        advance(session, run, RunEvent.DECLINE, reporter=self.reporter, now=now, reason=reason)

    def reconsider(self, session: Session, run: RunRow, now: datetime) -> Admitted | None:
        """Judge a run anew that waits for an approval; None if it was declined, for the reason it now has.

        Where an approval covers it, the run is queued under it. In the
        caller's transaction.
        """
        signed = signed_job(run)
        offered = Offered(run_id=run.run_id, job_id=run.job_id, round=run.round, signed=signed)
        spec = parse_job(run.payload)
        outcome = admit(spec, offered, replace(self.situation.view(session, spec, now), judged_before=True))
        if not isinstance(outcome, Admitted):
            self._decline(session, run, spec, outcome.reason, now)
            return None
        if outcome.approval is not None:
            admit_under(session, run, outcome.approval, now)
            advance(session, run, RunEvent.APPROVE, reporter=self.reporter, now=now)
            advance(session, run, RunEvent.QUEUE, reporter=self.reporter, now=now)
        return outcome


def _forget(session: Session, known: RunRow, run: RunRow) -> None:
    """Let ``run`` take the place of its earlier attempt."""
    run.execution = known.execution
    undecided = session.get(SummaryRow, known.run_id)
    for old in (known, undecided) if undecided is not None else (known,):
        session.delete(old)
    forget_admission(session, known.run_id)
    forget_decisions(session, known.run_id)
    session.flush()


def _may_follow(known: RunRow, offer: SignedOffer) -> bool:
    return offer.attempt > known.attempt and known.state in _MAY_START_AGAIN


def active_runs(session: Session) -> int:
    """Return how many runs hold a slot."""
    return _count(session, ACTIVE)


def _count(session: Session, states: tuple[RunState, ...]) -> int:
    return session.scalar(select(func.count()).select_from(RunRow).where(RunRow.state.in_(states))) or 0


def _row(offer: SignedOffer, spec: JobSpec | None, now: datetime) -> RunRow:
    return RunRow(
        run_id=offer.run_id,
        job_id=offer.job_id,
        round=offer.round,
        attempt=offer.attempt,
        execution=0,
        state=RunState.OFFERED,
        reason="",
        incident="",
        payload_type=offer.payload_type,
        payload=offer.payload,
        key_id=offer.key_id,
        signature=offer.signature,
        submitter=spec.submitter if spec else "",
        analysis=f"{spec.analysis.name}@{spec.analysis.version}" if spec else "",
        dataset="",
        parameters={},
        limits={},
        not_after=spec.not_after.astimezone(UTC) if spec else now,
        created_at=now,
        updated_at=now,
        enqueued_at=None,
        beat_at=None,
        worker="",
        claim="",
        project=spec.project if spec else "",
    )
