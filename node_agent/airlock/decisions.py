"""What output checkers decide on a summary that waits, signed with their own keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.decision import ReleaseDecision, parse_decision
from hansa.contract.digests import digest
from hansa.contract.directory import Directory, Role
from hansa.contract.envelope import DECISION_TYPE, Signed, from_json, to_json, verify
from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import signing_key
from node_agent.store.models import ReleaseDecisionRow, RunRow, SummaryRow


def verified_decision(
    signed: Signed, directory: Directory, *, node: str, run: RunRow, row: SummaryRow
) -> ReleaseDecision:
    """Return the decision, if an output checker of this node made it on just this summary.

    Raises:
        HansaError: ``PERMISSION_DENIED``, the directory has no such output
            checker; ``SELF_APPROVAL``, the job is the checker's own;
            ``DECISION_INVALID``, not signed by them or on something else.
    """
    person = directory.person(signed.key_id)
    if person is None or not person.has(Role.OUTPUT_CHECKER, node):
        raise HansaError(
            Reason.PERMISSION_DENIED, "The directory has no output checker of this name at this node.", field="person"
        )
    try:
        verify(signed, payload_type=DECISION_TYPE, key=signing_key(person.signing_key))
    except HansaError as error:
        raise HansaError(Reason.DECISION_INVALID, error.public, field=error.field) from error
    decision = parse_decision(signed.payload)
    wanted = {
        "checker": person.name,
        "node": node,
        "run_id": run.run_id,
        "summary_digest": f"sha256:{row.digest.hex()}",
    }
    for name, value in wanted.items():
        if getattr(decision, name) != value:
            raise HansaError(Reason.DECISION_INVALID, f"The decision is on something else ({name}).", field=name)
    if person.name == run.submitter:
        raise HansaError(Reason.SELF_APPROVAL)
    return decision


def store_decision(session: Session, decision: ReleaseDecision, signed: Signed, now: datetime) -> ReleaseDecisionRow:
    """Store a verified decision; return its row.

    Raises:
        HansaError: ``RELEASE_CONFLICT``; the same person has decided otherwise.
    """
    known = session.get(ReleaseDecisionRow, (decision.run_id, decision.checker))
    if known is not None:
        if known.decision != decision.decision:
            raise HansaError(Reason.RELEASE_CONFLICT, "This person has decided on the summary already.")
        return known
    row = ReleaseDecisionRow(
        run_id=decision.run_id,
        checker=decision.checker,
        decision=decision.decision,
        digest=digest(signed.payload),
        envelope=to_json(signed),
        decided_at=now,
    )
    session.add(row)
    session.flush()
    return row


def decisions_on(session: Session, run_id: str) -> Sequence[ReleaseDecisionRow]:
    """Return the decisions on a run's summary, in the order in which they came."""
    query = select(ReleaseDecisionRow).where(ReleaseDecisionRow.run_id == run_id)
    return session.scalars(query.order_by(ReleaseDecisionRow.decided_at, ReleaseDecisionRow.checker)).all()


def standing_decisions(
    session: Session, directory: Directory, *, node: str, run: RunRow, row: SummaryRow
) -> Sequence[ReleaseDecisionRow]:
    """Return those of ``decisions_on`` that would be taken today: of a checker who was removed since, none counts."""
    return [
        said
        for said in decisions_on(session, run.run_id)
        if _stands(from_json(said.envelope), directory, node=node, run=run, row=row)
    ]


def _stands(signed: Signed, directory: Directory, *, node: str, run: RunRow, row: SummaryRow) -> bool:
    try:
        verified_decision(signed, directory, node=node, run=run, row=row)
    except HansaError:
        return False
    return True


def forget_decisions(session: Session, run_id: str) -> None:
    """Delete the decisions on a summary that is thrown away undecided."""
    for row in decisions_on(session, run_id):
        session.delete(row)
