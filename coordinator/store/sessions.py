"""The columns of a node's row that its session owns, and what routing asks of nodes.

Works inside the caller's transaction, never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from coordinator.domain.frames import Hello
from coordinator.domain.membership import NodeState
from coordinator.domain.routing import Holding
from coordinator.store.job_models import NODES
from coordinator.store.people_models import DatasetRow
from hansa.contract.attach import NodeSeen
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head

_STANDING: Final = (
    select(
        NODES.c.state,
        NODES.c.epoch,
        NODES.c.store_uuid,
        NODES.c.generation,
        NODES.c.event_cursor_seq,
        NODES.c.event_cursor_hash,
        NODES.c.reconciling,
    )
    .where(NODES.c.node == bindparam("node"))
    .with_for_update()
)
_MOVE_CURSOR: Final = (
    update(NODES)
    .where(NODES.c.node == bindparam("of_node"))
    .values(event_cursor_seq=bindparam("seq"), event_cursor_hash=bindparam("head"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStanding:
    """A node's membership, its epoch, and its store as it is known."""

    state: NodeState
    epoch: int
    store: NodeSeen


class SessionRepository:
    """Epochs, stores, cursors and contact of nodes."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()

    def standing(self, node: str) -> NodeStanding:
        """Return how ``node`` stands; its row is locked until the transaction ends.

        Raises:
            HansaError: ``NODE_UNKNOWN``.
        """
        row = self._connection.execute(_STANDING, {"node": node}).one_or_none()
        if row is None:
            raise HansaError(Reason.NODE_UNKNOWN)
        cursor = Head(row.event_cursor_seq, row.event_cursor_hash)
        store = NodeSeen(
            uuid=row.store_uuid, generation=row.generation, event_cursor=cursor, reconciling=row.reconciling
        )
        return NodeStanding(state=NodeState(row.state), epoch=row.epoch, store=store)

    def open_epoch(self, node: str, epoch: int, hello: Hello) -> None:
        """Write the node's new epoch, which ends the standing of every older one."""
        self._connection.execute(
            update(NODES)
            .where(NODES.c.node == node)
            .values(epoch=epoch, store_uuid=hello.store_uuid, generation=hello.generation, reconciling=False)
        )

    def connect(self, node: str, now: datetime) -> None:
        """Write that the node is connected since ``now``."""
        self._connection.execute(update(NODES).where(NODES.c.node == node).values(connected=True, since=now))

    def note_clock(self, node: str, ahead_seconds: int) -> None:
        """Write by how much the node's clock is ahead of ours."""
        self._connection.execute(update(NODES).where(NODES.c.node == node).values(clock_ahead_seconds=ahead_seconds))

    def clocks(self) -> dict[str, int]:
        """Return by how many seconds the clocks of connected nodes are ahead of ours."""
        query = select(NODES.c.node, NODES.c.clock_ahead_seconds)
        rows = self._connection.execute(query.where(NODES.c.connected, NODES.c.clock_ahead_seconds.is_not(None)))
        return {row.node: row.clock_ahead_seconds for row in rows}

    def move_cursor(self, node: str, head: Head) -> None:
        """Write the last event that was applied."""
        self._connection.execute(_MOVE_CURSOR, {"of_node": node, "seq": head.seq, "head": head.hash})

    def disconnect(self, node: str, epoch: int, now: datetime) -> None:
        """Write that the node is gone, unless a newer session stands."""
        self._connection.execute(
            update(NODES)
            .where(NODES.c.node == node, NODES.c.epoch == epoch, NODES.c.connected.is_(True))
            .values(connected=False, since=now)
        )

    def disconnect_all(self, now: datetime) -> None:
        """Write that no node is connected: what the start of a coordinator knows."""
        self._connection.execute(update(NODES).where(NODES.c.connected.is_(True)).values(connected=False, since=now))

    def states(self, nodes: Sequence[str]) -> dict[str, NodeState]:
        """Return the membership state of those of ``nodes`` that there are."""
        rows = self._connection.execute(select(NODES.c.node, NODES.c.state).where(NODES.c.node.in_(nodes)))
        return {row.node: NodeState(row.state) for row in rows}

    def holdings(self, nodes: Sequence[str]) -> dict[tuple[str, str], Holding]:
        """Return what ``nodes`` offer, by node and dataset id."""
        columns = select(DatasetRow.node, DatasetRow.dataset_id, DatasetRow.build, DatasetRow.snapshot)
        rows = self._connection.execute(columns.where(DatasetRow.node.in_(nodes)))
        return {(row.node, row.dataset_id): Holding(row.build, row.snapshot) for row in rows}

    def gone_between(self, earliest: datetime, latest: datetime) -> list[str]:
        """Return the nodes that are not connected since a moment in (earliest, latest]."""
        query = select(NODES.c.node).where(
            NODES.c.connected.is_(False), NODES.c.since > earliest, NODES.c.since <= latest
        )
        return sorted(self._connection.scalars(query))

    def first_gone_after(self, earliest: datetime) -> datetime | None:
        """Return when the first of the nodes went that went after ``earliest`` and are away."""
        query = select(func.min(NODES.c.since)).where(NODES.c.connected.is_(False), NODES.c.since > earliest)
        found: datetime | None = self._connection.scalar(query)
        return found
