"""A node's membership: one table, and what each state means for its calls."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from hansa.contract.errors import HansaError, Reason


class NodeState(enum.StrEnum):
    """Where a node stands (``hansa.v1.Node.State``)."""

    INVITED = "INVITED"
    PENDING_CONFIRMATION = "PENDING_CONFIRMATION"
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    QUARANTINED = "QUARANTINED"
    REVOKED = "REVOKED"
    INVITATION_EXPIRED = "INVITATION_EXPIRED"


class NodeEvent(enum.StrEnum):
    """What can happen to a node's membership."""

    INVITE = "INVITE"
    INVITE_AGAIN = "INVITE_AGAIN"
    EXPIRE = "EXPIRE"
    REDEEM = "REDEEM"
    CONFIRM = "CONFIRM"
    SUSPEND = "SUSPEND"
    RESUME = "RESUME"
    QUARANTINE = "QUARANTINE"
    RECONCILE = "RECONCILE"
    REVOKE = "REVOKE"


class CredentialState(enum.StrEnum):
    """Where a node's certificate stands; at most one is pending and one active."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    SUPERSEDED = "SUPERSEDED"
    REVOKED = "REVOKED"


_S, _E = NodeState, NodeEvent

NODE_TRANSITIONS: Final[Mapping[tuple[NodeState, NodeEvent], NodeState]] = {
    # A new invitation replaces the one before it, also where the wrong key
    # redeemed that: the operator has compared fingerprints and said no.
    (_S.INVITED, _E.INVITE): _S.INVITED,
    (_S.INVITATION_EXPIRED, _E.INVITE): _S.INVITED,
    (_S.PENDING_CONFIRMATION, _E.INVITE): _S.INVITED,
    # A member that needs a new certificate, because the one it had expired or is
    # trusted no more, goes the whole way once more: two operators, and the
    # comparison of fingerprints. One that is set apart is not let back in by this.
    (_S.ACTIVE, _E.INVITE_AGAIN): _S.INVITED,
    (_S.INVITED, _E.EXPIRE): _S.INVITATION_EXPIRED,
    (_S.INVITED, _E.REDEEM): _S.PENDING_CONFIRMATION,
    (_S.PENDING_CONFIRMATION, _E.CONFIRM): _S.ACTIVE,
    (_S.ACTIVE, _E.SUSPEND): _S.SUSPENDED,
    (_S.SUSPENDED, _E.RESUME): _S.ACTIVE,
    # Only an operator ends a quarantine, after a look at the node's store.
    (_S.ACTIVE, _E.QUARANTINE): _S.QUARANTINED,
    (_S.QUARANTINED, _E.RESUME): _S.ACTIVE,
    # The same, of a store that was restored from a backup.
    (_S.QUARANTINED, _E.RECONCILE): _S.ACTIVE,
    **{(state, _E.REVOKE): _S.REVOKED for state in _S if state is not _S.REVOKED},
}

# What a node is told that may not call; an active node is told nothing.
_REFUSALS: Final[Mapping[NodeState, Reason]] = {
    _S.INVITED: Reason.CERTIFICATE_REFUSED,
    _S.INVITATION_EXPIRED: Reason.CERTIFICATE_REFUSED,
    _S.PENDING_CONFIRMATION: Reason.NODE_NOT_CONFIRMED,
    _S.SUSPENDED: Reason.NODE_SUSPENDED,
    _S.QUARANTINED: Reason.NODE_QUARANTINED,
    _S.REVOKED: Reason.NODE_REVOKED,
}


def next_node_state(state: NodeState, event: NodeEvent) -> NodeState:
    """Return the state ``event`` leads to.

    Raises:
        HansaError: ``NODE_STATE_CONFLICT``; the table has no row for the pair.
    """
    try:
        return NODE_TRANSITIONS[state, event]
    except KeyError:
        raise HansaError(
            Reason.NODE_STATE_CONFLICT, f"The node is {state}; that does not allow {event.lower()}.", field="node"
        ) from None


def check_admitted(state: NodeState) -> None:
    """Return if a node in ``state`` may call.

    Raises:
        HansaError: the reason that belongs to the state.
    """
    if state in _REFUSALS:
        raise HansaError(_REFUSALS[state])
