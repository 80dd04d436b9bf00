"""The columns of a node's row that its session owns.

Works inside the caller's transaction, never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from coordinator.domain.attachment import KnownStore
from coordinator.domain.frames import Hello
from coordinator.domain.membership import NodeState
from coordinator.domain.routing import Holding
from coordinator.store.people_models import DatasetRow, NodeRow
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head


class SessionRepository:
    """Epochs, stores, cursors and contact of nodes."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def lock(self, node: str) -> NodeRow:
        """Return the row of ``node``, locked until the transaction ends.

        Raises:
            HansaError: ``NODE_UNKNOWN``.
        """
        query = select(NodeRow).where(NodeRow.node == node).with_for_update()
        row = self._session.scalar(query.execution_options(populate_existing=True))
        if row is None:
            raise HansaError(Reason.NODE_UNKNOWN)
        return row

    def open_epoch(self, row: NodeRow, hello: Hello) -> int:
        """Give the node a new epoch, which ends the standing of every older one."""
        row.epoch += 1
        row.store_uuid, row.generation = hello.store_uuid, hello.generation
        self._session.flush()
        return row.epoch

    def connect(self, row: NodeRow, now: datetime) -> None:
        """Write that the node is connected since ``now``."""
        row.connected, row.since = True, now
        self._session.flush()

    def move_cursor(self, row: NodeRow, head: Head) -> None:
        """Write the last event that was applied."""
        row.event_cursor_seq, row.event_cursor_hash = head.seq, head.hash

    def disconnect(self, node: str, epoch: int, now: datetime) -> None:
        """Write that the node is gone, unless a newer session stands."""
        self._session.execute(
            update(NodeRow)
            .where(NodeRow.node == node, NodeRow.epoch == epoch, NodeRow.connected.is_(True))
            .values(connected=False, since=now)
        )

    def disconnect_all(self, now: datetime) -> None:
        """Write that no node is connected: what the start of a coordinator knows."""
        self._session.execute(update(NodeRow).where(NodeRow.connected.is_(True)).values(connected=False, since=now))

    def states(self, nodes: Sequence[str]) -> dict[str, NodeState]:
        """Return the membership state of those of ``nodes`` that there are."""
        rows = self._session.execute(select(NodeRow.node, NodeRow.state).where(NodeRow.node.in_(nodes)))
        return {row.node: NodeState(row.state) for row in rows}

    def holdings(self, nodes: Sequence[str]) -> dict[tuple[str, str], Holding]:
        """Return what ``nodes`` offer, by node and dataset id."""
        rows = self._session.scalars(select(DatasetRow).where(DatasetRow.node.in_(nodes)))
        return {(row.node, row.dataset_id): Holding(row.build, row.snapshot) for row in rows}

    def gone_between(self, earliest: datetime, latest: datetime) -> list[str]:
        """Return the nodes that are not connected since a moment in (earliest, latest]."""
        query = select(NodeRow.node).where(
            NodeRow.connected.is_(False), NodeRow.since > earliest, NodeRow.since <= latest
        )
        return sorted(self._session.scalars(query))

    def first_gone_after(self, earliest: datetime) -> datetime | None:
        """Return when the first of the nodes went that went after ``earliest`` and are away."""
        query = select(func.min(NodeRow.since)).where(NodeRow.connected.is_(False), NodeRow.since > earliest)
        return self._session.scalar(query)


def known_store(row: NodeRow) -> KnownStore:
    """Return what the coordinator knows of the node's store."""
    return KnownStore(uuid=row.store_uuid, generation=row.generation, event_cursor=event_cursor(row))


def event_cursor(row: NodeRow) -> Head:
    """Return the last event of the node that was applied."""
    return Head(row.event_cursor_seq, row.event_cursor_hash)
