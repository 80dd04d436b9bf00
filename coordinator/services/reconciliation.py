"""A node whose store was restored from a backup is told what it has forgotten.

What is recorded here is what the node itself has reported and signed. It
adopts that and reports all of it again; no run is released a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sqlalchemy.orm import Session

from coordinator.domain.frames import Cancel, CommandBody, Offer, Reconcile, RecordedRun
from coordinator.domain.membership import NodeEvent
from coordinator.services.desk import Turn
from coordinator.services.nodes import Act
from coordinator.store.audit import AuditRepository
from coordinator.store.jobs import JobRepository
from coordinator.store.nodes import Node, NodeRepository
from coordinator.store.outboxes import CommandRepository
from coordinator.store.recorded_runs import Recorded, forget_unsigned, recorded_runs
from coordinator.store.witnesses import NodeLog, NodeLogRepository
from hansa.contract.ids import NodeId
from hansa.contract.witnessing import Seen

# Well below what one message may hold, and one run's part is at most 64 KiB.
_COMMAND_BYTES: Final = 256 << 10
_ROW_BYTES: Final = 256


def reconcile_node(session: Session, node: NodeId, act: Act) -> Node:
    """Admit a quarantined node once with a restored store.

    Its audit log is shorter than the one that was seen. Whoever reconciles it
    takes that over too: what the node shows next is what is witnessed of it.

    Raises:
        HansaError: ``NODE_UNKNOWN``; ``NODE_STATE_CONFLICT``, it is not quarantined.
    """
    nodes = NodeRepository(session)
    admitted = nodes.apply(node, NodeEvent.RECONCILE)
    nodes.expect_restored(node)
    logs = NodeLogRepository(session)
    seen = logs.get(node).seen
    facts: dict[str, str | int] = {"node": node, "seen_size": seen.size, "seen_root": seen.root.hex()}
    logs.put(node, NodeLog(Seen(), b"", b"", b""), act.now)
    audit = AuditRepository(session)
    audit.append(at=act.now, actor=act.actor, action="node_reconciled", subject=node, facts=facts)
    return admitted


def tell_recorded(session: Session, node: NodeId, generation: int, turn: Turn) -> None:
    """Write what a restored node is to be told into its outbox; in the transaction that opens its epoch.

    Every run is offered again, then what is recorded of them all is told: the
    node needs nothing that it was sent before.
    """
    forget_unsigned(session, node)
    found = recorded_runs(session, node)
    commands = CommandRepository(session)
    for command in (*_offers(session, found), *_reconciles([one.run for one in found], generation)):
        commands.append(node, turn.encode(command, turn.now), turn.now)


def _offers(session: Session, found: Sequence[Recorded]) -> Iterator[CommandBody]:
    jobs = JobRepository(session)
    for one in found:
        run = one.run
        job = jobs.envelope(one.job_id)
        yield Offer(run_id=run.run_id, job_id=one.job_id, round=one.round, attempt=run.attempt, job=job)
        if one.is_cancelling:
            yield Cancel(run.run_id, run.attempt)


def _reconciles(runs: Sequence[RecordedRun], generation: int) -> Iterator[CommandBody]:
    part: list[RecordedRun] = []
    size = 0
    for run in runs:
        weight = _ROW_BYTES + (len(run.statement.payload) if run.statement is not None else 0)
        if part and size + weight > _COMMAND_BYTES:
            yield Reconcile(tuple(part), more=True, generation=generation)
            part, size = [], 0
        part.append(run)
        size += weight
    yield Reconcile(tuple(part), generation=generation)
