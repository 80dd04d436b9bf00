"""What becomes of an offer: stored, judged by the node's own policy, answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hansa.contract.envelope import JOB_TYPE
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.ids import is_run_id, run_id
from hansa.contract.job import JobSpec, parse_job
from hansa.contract.states import RunEvent, RunState
from node_agent.airlock.decisions import forget_decisions
from node_agent.audit.entries import offer_accepted, offer_declined
from node_agent.audit.log import append
from node_agent.catalogue import InstalledAnalysis
from node_agent.policy.admission import Admitted, LocalDataset, NodeView, admit
from node_agent.policy.policy import Policy
from node_agent.reporting import Reporter, advance
from node_agent.store.models import DatasetRow, RunRow, SummaryRow

_log = structlog.get_logger(__name__)
_ACTIVE = (RunState.STAGING, RunState.RUNNING, RunState.CHECKING, RunState.CANCELLING)
_MAY_START_AGAIN = (RunState.DECLINED, RunState.FAILED, RunState.EXPIRED, RunState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOffer:
    """An offer as it came: the job's signed bytes and the run's name."""

    run_id: str
    job_id: str
    round: int
    attempt: int
    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """Receives offers inside the transaction that moves the command cursor."""

    node: str
    analyses: Mapping[str, InstalledAnalysis]
    policy: Callable[[], Policy]
    draining: Callable[[], bool]
    reporter: Reporter

    def receive(self, session: Session, offer: SignedOffer, now: datetime) -> None:
        """Store the run and decide on it; a repeat of an offer changes nothing.

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
            _log.info("offer_not_followed", run_id=known.run_id, state=known.state, attempt=offer.attempt)
            return
        spec = self._spec(offer)
        run = _row(offer, spec, now)
        if known is not None:
            run.execution = known.execution
            undecided = session.get(SummaryRow, known.run_id)
            for old in (known, undecided) if undecided is not None else (known,):
                session.delete(old)
            forget_decisions(session, known.run_id)
            session.flush()
        session.add(run)
        session.flush()
        self._decide(session, run, spec, now)

    def _spec(self, offer: SignedOffer) -> JobSpec | None:
        """Return the job if it is one, in its submitter's name, for this node, and names this run."""
        try:
            spec = parse_job(offer.payload)
            spec.not_after.astimezone(UTC)
        except (HansaError, OverflowError):
            return None
        named = offer.run_id == run_id(spec.job_id, self.node, offer.round) and spec.job_id == offer.job_id
        signed = offer.payload_type == JOB_TYPE and offer.key_id == spec.submitter and bool(offer.signature)
        return spec if named and signed and self.node in spec.nodes else None

    def _decide(self, session: Session, run: RunRow, spec: JobSpec | None, now: datetime) -> None:
        outcome = self._admission(session, spec, now)
        dataset = spec.dataset_at(self.node).dataset if spec else ""
        if not isinstance(outcome, Admitted):
            append(session, offer_declined(run, spec, dataset, outcome), now)
            _log.info("offer_declined", run_id=run.run_id, reason=outcome.value)
            advance(session, run, RunEvent.DECLINE, reporter=self.reporter, now=now, reason=outcome)
            return
        run.dataset = dataset
        run.parameters = dict(outcome.parameters)
        run.limits = outcome.limits.model_dump(mode="json")
        append(session, offer_accepted(run), now)
        _log.info("offer_accepted", run_id=run.run_id, job_id=run.job_id)
        advance(session, run, RunEvent.ACCEPT, reporter=self.reporter, now=now)
        advance(session, run, RunEvent.QUEUE, reporter=self.reporter, now=now)

    def _admission(self, session: Session, spec: JobSpec | None, now: datetime) -> Admitted | RunReason:
        if spec is None:
            return RunReason.JOB_INVALID
        analysis = self.analyses.get(f"{spec.analysis.name}@{spec.analysis.version}")
        row = session.get(DatasetRow, spec.dataset_at(self.node).dataset)
        view = NodeView(
            node=self.node,
            policy=self.policy(),
            manifest=analysis.manifest if analysis else None,
            analysis_digest=analysis.digest if analysis else "",
            now=now,
            dataset=None if row is None else LocalDataset(row.dataset_id, row.snapshot),
            queued=_count(session, (RunState.QUEUED,)),
            draining=self.draining(),
        )
        outcome = admit(spec, view)
        return outcome if isinstance(outcome, Admitted) else outcome.reason


def _may_follow(known: RunRow, offer: SignedOffer) -> bool:
    return offer.attempt > known.attempt and known.state in _MAY_START_AGAIN


def active_runs(session: Session) -> int:
    """Return how many runs hold a slot."""
    return _count(session, _ACTIVE)


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
    )
