"""How a node's release statement comes in: verified against the directory, stored once.

What does not hold is a lie of the node that sent it: it is set apart, with an
entry in the audit log.
"""

from __future__ import annotations

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.frames import SummaryReleased
from coordinator.domain.records import RunRecord
from coordinator.services.desk import Turn
from coordinator.services.nodes import quarantine_node
from coordinator.services.trust import directory_in_force
from coordinator.store.audit import AuditRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.statements import StatementRepository, StoredStatement
from coordinator.store.summaries import SummaryRepository
from hansa.contract.delivery import Released, check_one_release
from hansa.contract.digests import digest
from hansa.contract.envelope import Signed, to_json
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.job import parse_job
from hansa.contract.log_evidence import RELEASED, logged_release
from hansa.contract.receipt import Expected, subject_digest, verified_statement

_log = structlog.get_logger(__name__)


def take_statement(session: Session, released: SummaryReleased, job_id: str, run: RunRecord, turn: Turn) -> str:
    """Verify and store the statement in ``released``; return the digest of its payload.

    Raises:
        HansaError: ``STATEMENT_INVALID``, there is none or it does not hold;
            ``SUMMARY_CONFLICT``, the node has signed or uploaded another for
            this run. The node is set apart; nothing else was written.
    """
    try:
        statement = _verified(session, released, job_id, run)
        known = StatementRepository(session).get(run.run_id)
        before = Released("" if known is None else known.digest, SummaryRepository(session).digest(run.run_id) or b"")
        check_one_release(before, Released(statement.digest, statement.subject))
        if known is None and not JobRepository(session).announce_summary(run.run_id, statement.subject):
            raise HansaError(Reason.SUMMARY_CONFLICT, "The node has announced another summary.")
    except HansaError as error:
        set_apart(session, run, job_id, error, turn)
        raise
    if known is None:
        StatementRepository(session).add(statement, turn.now)
        AuditRepository(session).append(
            at=turn.now,
            actor=run.node,
            action=RELEASED,
            subject=f"{job_id} {statement.digest}",
            facts=logged_release(job_id, run.node, run.run_id, statement.digest),
        )
        _log.info("statement_stored", job_id=job_id, node=run.node, statement=statement.digest)
    return statement.digest


def set_apart(session: Session, run: RunRecord, job_id: str, fault: HansaError, turn: Turn) -> None:
    """Quarantine the node of ``run``, whose word on a release does not hold."""
    _log.error(
        "release_refused", job_id=job_id, node=run.node, reason=fault.reason.value, field=fault.field, detail=str(fault)
    )
    AuditRepository(session).append(
        at=turn.now, actor=run.node, action="release_refused", subject=f"{job_id} {fault.reason.value} {fault.field}"
    )
    quarantine_node(session, NodeId(run.node), f"a release that does not hold: {fault.reason.value}", turn.now)


def _verified(session: Session, released: SummaryReleased, job_id: str, run: RunRecord) -> StoredStatement:
    if released.statement is None:
        raise HansaError(Reason.STATEMENT_INVALID, "The release is not signed.", field="statement")
    payload = JobRepository(session).envelope(job_id).payload
    expected = Expected(
        payload=payload, spec=parse_job(payload), node=run.node, round=run.round, attempt=released.attempt
    )
    statement = verified_statement(
        released.statement, key=_key(session, run.node, released.statement), expected=expected
    )
    if statement.predicate.execution != released.execution:
        raise HansaError(Reason.STATEMENT_INVALID, "It speaks of another execution.", field="execution")
    subject = bytes.fromhex(subject_digest(statement))
    if subject != released.digest:
        raise HansaError(Reason.STATEMENT_INVALID, "It speaks of other bytes than were announced.", field="subject")
    return StoredStatement(
        run_id=run.run_id,
        digest=digest(released.statement.payload),
        subject=subject,
        envelope=to_json(released.statement),
    )


def _key(session: Session, node: str, signed: Signed) -> str:
    """Return the node's key of the directory in force; a node that is not in it may say nothing."""
    known = directory_in_force(session).node(node)
    if known is None:
        raise HansaError(
            Reason.STATEMENT_INVALID, "The directory has no such node.", field="key_id", log=ascii(signed.key_id[:40])
        )
    return known.signing_key
