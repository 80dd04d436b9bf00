"""Nodes and their membership. Works inside the caller's transaction and never commits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.domain.membership import NodeEvent, NodeState, next_node_state
from coordinator.store.paging import Page, Slice, cut
from coordinator.store.people_models import InvitationRow, NodeRow
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId


@dataclass(frozen=True, slots=True)
class Node:
    """A node as people see it.

    ``since``: when it connected, or was last heard; None where it never was.
    ``clock_ahead_seconds``: of a connected node, as it was found last.
    """

    node: NodeId
    state: NodeState
    connected: bool
    since: datetime | None
    key_fingerprint: str
    reason: str
    clock_ahead_seconds: int = 0


class NodeRepository:
    """Reads nodes, and changes their state by the table alone."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, node: str) -> Node:
        """Return the node.

        Raises:
            HansaError: ``NODE_UNKNOWN``.
        """
        return _node(self._row(node))

    def find(self, node: str) -> Node | None:
        """Return the node, if there is one of this name."""
        row = self._session.get(NodeRow, node)
        return None if row is None else _node(row)

    def add(self, node: NodeId) -> None:
        """Store a node that is invited for the first time."""
        self._session.add(NodeRow(node=node, state=NodeState.INVITED))
        self._session.flush()

    def apply(self, node: str, event: NodeEvent, *, reason: str = "") -> Node:
        """Return the node after ``event``.

        Args:
            node: which one.
            event: what happened.
            reason: what is shown beside the new state; replaces the one before.

        Raises:
            HansaError: ``NODE_UNKNOWN``; ``NODE_STATE_CONFLICT``, the table
                has no such transition.
        """
        row = self._row(node)
        row.state = next_node_state(NodeState(row.state), event)
        row.reason = reason
        self._session.flush()
        return _node(row)

    def expect_restored(self, node: str) -> None:
        """Record that the node may come once with a store that was restored from a backup."""
        self._row(node).reconciling = True
        self._session.flush()

    def set_key(self, node: str, key_fingerprint: str) -> None:
        """Record which key the node enrolled with; empty takes it back."""
        self._row(node).key_fingerprint = key_fingerprint
        self._session.flush()

    def expire_invitations(self, now: datetime) -> None:
        """Turn every invited node whose invitation has run out to INVITATION_EXPIRED."""
        standing = select(InvitationRow.node).where(InvitationRow.expires_at > now)
        self._session.execute(
            update(NodeRow)
            .where(NodeRow.state == NodeState.INVITED, NodeRow.node.not_in(standing))
            .values(state=NodeState.INVITATION_EXPIRED)
        )

    def in_states(self, states: Collection[NodeState]) -> tuple[str, ...]:
        """Return the names of the nodes that are in one of ``states``."""
        return tuple(self._session.scalars(select(NodeRow.node).where(NodeRow.state.in_(states))))

    def page(self, page: Page) -> Slice[Node]:
        """Return nodes in the order of their names."""
        query = select(NodeRow).where(NodeRow.node > page.after).order_by(NodeRow.node).limit(page.limit + 1)
        return cut(self._session.scalars(query).all(), page, lambda row: row.node, _node)

    def _row(self, node: str) -> NodeRow:
        row = self._session.get(NodeRow, node)
        if row is None:
            raise HansaError(Reason.NODE_UNKNOWN, field="node")
        return row


def _node(row: NodeRow) -> Node:
    ahead = (row.clock_ahead_seconds or 0) if row.connected else 0
    state = NodeState(row.state)
    return Node(NodeId(row.node), state, row.connected, row.since, row.key_fingerprint, row.reason, ahead)
