"""Whether a node's session may stand: store identity, epochs and heads."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from coordinator.domain.frames import HeadProof, Hello
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import PROTOCOL_VERSION
from hansa.contract.outbox import Head, heads_agree


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownStore:
    """What the coordinator knows of a node's store. ``uuid`` empty: nothing yet."""

    uuid: str
    generation: int
    event_cursor: Head


def check_hello(hello: Hello) -> None:
    """Return if the node speaks this protocol and names its store.

    Raises:
        HansaError: ``VERSION_UNSUPPORTED`` or ``PROTOCOL_VIOLATION``.
    """
    if hello.protocol != PROTOCOL_VERSION:
        raise HansaError(
            Reason.VERSION_UNSUPPORTED,
            f"The coordinator speaks protocol {PROTOCOL_VERSION}, the node {hello.protocol}.",
        )
    if not (0 < len(hello.store_uuid) <= 64 and hello.store_uuid.isascii()):  # noqa: PLR2004 - a UUID's room
        raise HansaError(Reason.PROTOCOL_VIOLATION, field="store_uuid")


def store_fault(known: KnownStore, hello: Hello) -> str:
    """Return why the node's store is not the one known; empty if it is.

    A new store is accepted only while nothing of the old one was applied: a
    second history under one node's name is never merged into the first.
    """
    if not known.uuid or known.event_cursor.seq == 0:
        return ""
    if hello.store_uuid != known.uuid:
        return "the node came with another store"
    if hello.generation < known.generation:
        return "the node's store is of an older generation"
    return ""


def check_proof(proof: HeadProof, *, epoch: int, nonce: bytes) -> None:
    """Return if ``proof`` answers this session's welcome and no other's.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``.
    """
    if proof.epoch != epoch or not hmac.compare_digest(proof.nonce, nonce):
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The head proof answers another welcome.", field="head_proof")


def heads_fault(proof: HeadProof, *, event_cursor: Head, command_head: Head, command_hash_at_cursor: bytes) -> str:
    """Return how the two outboxes disagree; empty if each continues the other.

    Args:
        proof: what the node holds.
        event_cursor: the last event that the coordinator has applied.
        command_head: the last command of the coordinator for this node.
        command_hash_at_cursor: the coordinator's hash of the command at the
            node's cursor; empty if there is none.
    """
    if not heads_agree(event_cursor, proof.event_head, proof.hash_at_event_cursor):
        return "the node's events do not continue what was received"
    if not heads_agree(proof.command_cursor, command_head, command_hash_at_cursor):
        return "the node has applied commands that the coordinator does not hold"
    return ""
