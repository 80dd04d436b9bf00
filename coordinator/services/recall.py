"""How a store that was restored from a backup gets back the jobs that it forgot.

A node that notices the restore sends the jobs it knows, as their researchers
signed them, and then how its runs stand. Only the signature is believed: what
was admitted once is not judged again by today's directory.
"""

from __future__ import annotations

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.records import RunRecord
from coordinator.services.desk import Changed, Turn
from coordinator.services.submission import admit_job, verified_job
from coordinator.store.federation import read_federation
from coordinator.store.jobs import JobRepository
from coordinator.store.sessions import SessionRepository
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec, check_quorum, check_window

_log = structlog.get_logger(__name__)

Runs = dict[str, tuple[str, RunRecord]]


def is_restored(session: Session) -> bool:
    """Say whether this store was ever restored from a backup, and may have forgotten what nodes know."""
    federation = read_federation(session)
    return federation is not None and federation.generation > 1


def recall_job(session: Session, node: str, signed: Signed | None, turn: Turn) -> tuple[Runs, Changed]:
    """Store a job again that this store forgot; return its runs, and what changed.

    A job that is known changes nothing; neither does one that cannot be taken
    back, which is only logged: it holds up no other event of the node.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``; this store was never restored.
    """
    if not is_restored(session):
        raise HansaError(Reason.PROTOCOL_VIOLATION, "Nothing was forgotten here.")
    try:
        return _recall(session, node, signed, turn)
    except HansaError as error:
        _log.warning("job_not_recalled", node=node, reason=error.reason.value, field=error.field)
        return {}, Changed()


def _recall(session: Session, node: str, signed: Signed | None, turn: Turn) -> tuple[Runs, Changed]:
    if signed is None:
        raise HansaError(Reason.ENVELOPE_INVALID, field="signatures")
    spec = verified_job(session, signed, signed.key_id)
    if node not in spec.nodes:
        raise HansaError(Reason.NODE_MISMATCH)
    if JobRepository(session).envelope_digest(spec.job_id) is None:
        check_window(spec, turn.now)
        check_quorum(spec)
        _check_nodes(session, spec)
        changed = admit_job(session, spec, signed, turn)
        _log.warning("job_recalled", job_id=spec.job_id, node=node)
    else:
        changed = Changed()
    runs = JobRepository(session).get(spec.job_id).runs
    return {run.run_id: (spec.job_id, run) for run in runs}, changed


def _check_nodes(session: Session, spec: JobSpec) -> None:
    if len(SessionRepository(session).states(spec.nodes)) != len(spec.nodes):
        raise HansaError(Reason.NODE_UNKNOWN, field="datasets")
