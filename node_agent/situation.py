"""What the node knows at the moment of a decision on a job, gathered for the pure rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hansa.contract.digests import digest
from hansa.contract.envelope import Signed, to_json
from hansa.contract.errors import RunReason
from hansa.contract.job import JobSpec, parse_job
from hansa.contract.states import RunState
from hansa.trust.view import TrustView
from node_agent.approval_records import taken_of, that_may_speak_of
from node_agent.catalogue import InstalledAnalysis
from node_agent.policy.admission import LocalDataset, NodeKeys, NodeView, Seen, is_member, still_stands
from node_agent.policy.approvals import Site
from node_agent.policy.policy import Policy
from node_agent.store.ledger import known_digest
from node_agent.store.models import DatasetRow, RunRow


def no_alarm() -> bool:
    """Return that nothing speaks against the coordinator's log, or the clock."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Gathers a ``NodeView`` inside the caller's transaction.

    ``alarm`` says that the coordinator's audit log does not continue what this
    node has seen of it: then nothing new is taken and nothing leaves.
    ``clock_wrong``: the clocks of the two are too far apart; nothing new is taken.
    """

    site: Site
    analyses: Mapping[str, InstalledAnalysis]
    policy: Callable[[], Policy]
    trust: Callable[[], TrustView | None]
    keys: NodeKeys | None
    draining: Callable[[], bool]
    alarm: Callable[[], bool] = no_alarm
    clock_wrong: Callable[[], bool] = no_alarm

    def view(self, session: Session, spec: JobSpec, now: datetime) -> NodeView:
        """Return what a decision on ``spec`` depends on, but for the replay ledger."""
        analysis = self.analyses.get(f"{spec.analysis.name}@{spec.analysis.version}")
        row = session.get(DatasetRow, spec.dataset_at(self.site.node).dataset)
        waiting = select(RunRow.project, func.count()).where(RunRow.state == RunState.QUEUED).group_by(RunRow.project)
        queued = {project: count for project, count in session.execute(waiting)}  # noqa: C416 - rows are no pairs
        return NodeView(
            site=self.site,
            policy=self.policy(),
            now=now,
            trust=self.trust(),
            keys=self.keys,
            alarmed=self.alarm(),
            clock_wrong=self.clock_wrong(),
            manifest=analysis.manifest if analysis is not None else None,
            dataset=None if row is None else LocalDataset(row.dataset_id, row.snapshot),
            approvals=that_may_speak_of(session, spec),
            queued=sum(queued.values()),
            queued_of_project=queued.get(spec.project, 0),
            draining=self.draining(),
        )

    def is_listed(self) -> bool:
        """Say whether the directory in force has this node, with its own keys."""
        trust = self.trust()
        return trust is not None and is_member(trust, self.site, self.keys)

    def refusal(self, session: Session, run: RunRow, now: datetime, *, starting: bool = False) -> RunReason | None:
        """Return why an admitted run may not start, go on or be released any more; None if it may.

        Args:
            session: the caller's transaction, which has read ``run``.
            run: the run.
            now: aware time.
            starting: whether an execution is about to begin.
        """
        spec, signed = parse_job(run.payload), signed_job(run)
        taken = taken_of(session, run)
        view = NodeView(
            site=self.site, policy=self.policy(), now=now, trust=self.trust(), keys=self.keys, alarmed=self.alarm()
        )
        return still_stands(spec, signed, view, taken=taken, starting=starting)


def seen_before(session: Session, spec: JobSpec, signed: Signed, *, run_known: bool) -> Seen:
    """Return what the ledger says of a job.

    Args:
        session: the caller's transaction.
        spec: the job.
        signed: its envelope.
        run_known: whether the run that it names is in the store.
    """
    known = known_digest(session, spec)
    if known is None:
        return Seen.NEVER
    return Seen.SAME if run_known and known == envelope_digest(signed) else Seen.OTHER


def envelope_digest(signed: Signed) -> str:
    """Return the digest of the envelope with its signature."""
    return digest(to_json(signed))


def signed_job(run: RunRow) -> Signed:
    """Return the envelope of the run's job, as it came."""
    return Signed(run.payload_type, run.payload, run.key_id, run.signature)
