"""Makes the one signed statement of a release, and what leaves with it.

Both are made in the transaction of the decision, after the audit leaf and
before the event; they are stored and sent as those bytes for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.orm import Session

from hansa.contract.digests import digest
from hansa.contract.envelope import STATEMENT_TYPE, Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec
from hansa.contract.raw_keys import agreement_key
from hansa.contract.receipt import RULES, subject_name
from hansa.contract.release import ReleaseClass
from hansa.contract.sealing import SealContext, seal
from hansa.contract.statement import (
    Decider,
    LogPlace,
    Release,
    RuleOutcome,
    Statement,
    Subject,
    SubjectDigest,
)
from hansa.trust.view import TrustView
from node_agent.keys.signing import Signer
from node_agent.store.models import RunRow, SummaryRow

BY_RULES: Final = Decider(by=RULES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A release about to be signed: which job and run, what leaves, who let it, and its audit leaf."""

    payload: bytes
    spec: JobSpec
    run: RunRow
    content: bytes
    checks: Sequence[Any]
    release_class: ReleaseClass
    deciders: tuple[Decider, ...]
    log: LogPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class Notary:
    """Signs the node's releases.

    Attributes:
        node: the node's id.
        signer: holds the node's signing key.
        trust: the verified trust repository in force; None before there is one.
        policy_digest: of the policy in force.
        approvals_of: the digests of the data holder's approvals of a run, from
            the store.
    """

    node: str
    signer: Signer
    trust: Callable[[], TrustView | None]
    policy_digest: Callable[[], str]
    approvals_of: Callable[[Session, RunRow], Sequence[str]]

    def view(self) -> TrustView:
        """Return the trust repository in force.

        Raises:
            HansaError: ``TRUST_INVALID``; there is none yet.
        """
        view = self.trust()
        if view is None:
            raise HansaError(Reason.TRUST_INVALID, "This node has no verified trust repository yet.")
        return view

    def sign(self, session: Session, outgoing: Outgoing, now: datetime) -> Signed:
        """Return the signed statement of ``outgoing``. Call once, and store.

        Raises:
            HansaError: ``TRUST_INVALID``; ``APPROVAL_UNKNOWN``, the node's data
                holder has approved nothing of this run. Nothing may leave.
        """
        approvals = tuple(self.approvals_of(session, outgoing.run))
        if not approvals:
            raise HansaError(Reason.APPROVAL_UNKNOWN, "The run has no approval of the node's data holder.")
        left = SubjectDigest(sha256=hashlib.sha256(outgoing.content).hexdigest())
        subject = Subject(name=subject_name(outgoing.spec), digest=left)
        statement = Statement(subject=(subject,), predicate=self._predicate(outgoing, approvals, now))
        return self.signer.sign(STATEMENT_TYPE, statement.to_bytes())

    def _predicate(self, outgoing: Outgoing, approvals: tuple[str, ...], now: datetime) -> Release:
        spec, run, ref = outgoing.spec, outgoing.run, outgoing.spec.dataset_at(self.node)
        return Release(
            federation=spec.federation,
            node=self.node,
            job_id=spec.job_id,
            job_digest=digest(outgoing.payload),
            round=run.round,
            run_id=run.run_id,
            attempt=run.attempt,
            execution=run.execution,
            analysis=spec.analysis,
            dataset=ref.dataset,
            snapshot=ref.snapshot,
            policy_digest=self.policy_digest(),
            directory_version=self.view().directory.version,
            release_class=outgoing.release_class,
            # The rule and its word alone: a count would say how much was suppressed.
            checks=tuple(RuleOutcome(rule=check["rule"], outcome=check["outcome"]) for check in outgoing.checks),
            approvals=approvals,
            deciders=outgoing.deciders,
            recipient_key=spec.recipient_key,
            # A clock that was set back does not make an answer older than its question.
            released_at=max(now, spec.not_before).astimezone(UTC),
            log=outgoing.log,
        )


def leaving(spec: JobSpec, payload: bytes, row: SummaryRow) -> bytes:
    """Return what leaves of a cleared summary: itself, or sealed to the job's reader.

    Sealing gives other bytes each time: call once, and store.
    """
    if spec.recipient_key is None:
        return row.summary
    context = SealContext(row.run_id, row.attempt, digest(payload))
    return seal(row.summary, agreement_key(spec.recipient_key), context)
