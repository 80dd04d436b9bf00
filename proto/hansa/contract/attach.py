"""How two stores meet: epochs, generations and heads, as pure rules for both sides.

A store is named by its id and its **generation**, which an operator's restore
raises. A store that lost its last commits without that is noticed by its heads:
each side shows the other how far it had come.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head, heads_agree

# Epochs of one generation of the coordinator's store; more than 400 a second for a century.
_FIRST_GENERATION: Final = 1
_EPOCHS: Final = 1 << 40
# Between two attaches. What a node has once accepted it holds the coordinator to: no breach shall
# be able to use the numbers up.
_MOST_RESTORES: Final = 1000


def next_epoch(last: int, generation: int) -> int:
    """Return the epoch of a new session.

    It carries the generation of the coordinator's store: a store that was
    restored has forgotten epochs, and must not give one of them again.
    """
    return max(last + 1, (generation - 1) * _EPOCHS + 1)


def check_epoch(epoch: int, session: int) -> None:
    """Return if a frame is of its session's epoch.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``.
    """
    if epoch != session:
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The frame is of another epoch.")


def check_standing(session: int, newest: int) -> None:
    """Return if a session still has the node's newest epoch; asked in each transaction that changes something.

    Raises:
        HansaError: ``EPOCH_FENCED``.
    """
    if session != newest:
        raise HansaError(Reason.EPOCH_FENCED)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSeen:
    """What a node keeps of its coordinator. ``uuid`` empty: it has never attached.

    ``acked`` is the last of its events that the coordinator has acknowledged,
    ``commands`` the last command that the node has applied.
    """

    uuid: str
    generation: int
    acked: int
    commands: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorTold:
    """What a coordinator says of itself at an attach.

    ``command_base`` is the last command that it knows the node to have applied.
    """

    uuid: str
    generation: int
    event_cursor: Head
    command_head: Head
    command_base: Head


class Course(enum.Enum):
    """How a node goes on with the coordinator that welcomed it."""

    CONTINUE = enum.auto()
    # Its store was restored: take its commands from where it remembers, and tell it again what it forgot.
    TELL_AGAIN = enum.auto()


def course(seen: CoordinatorSeen, told: CoordinatorTold) -> Course:
    """Say how a node goes on with the coordinator that welcomed it.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``, it is another store, or of a
            generation that no operator has made; ``COORDINATOR_BEHIND``, it has forgotten something and its
            generation does not say that an operator knows.
    """
    if not seen.uuid:
        return Course.CONTINUE
    if seen.uuid != told.uuid:
        raise HansaError(Reason.PROTOCOL_VIOLATION, log="the coordinator has another store")
    if told.generation > seen.generation + _MOST_RESTORES:
        raise HansaError(Reason.PROTOCOL_VIOLATION, log="the coordinator's generation leaps")
    if told.generation > seen.generation:
        return Course.TELL_AGAIN
    if told.generation < seen.generation:
        raise HansaError(Reason.COORDINATOR_BEHIND, log="the coordinator's store is of an older generation")
    if told.command_head.seq < seen.commands.seq or told.event_cursor.seq < seen.acked:
        raise HansaError(Reason.COORDINATOR_BEHIND, log="the coordinator has forgotten what was sent")
    return Course.CONTINUE


def begins_anew(way: Course, *, reconciled: bool, cursor: Head, head: Head, hash_at_cursor: bytes) -> bool:
    """Say whether a node drops the events that it keeps, and goes on right behind the coordinator's cursor.

    What a node tells that was restored itself is not to be trusted. Where the
    coordinator was restored to before the first event that is kept here, those
    between are gone, and all that they said is told again. Who has fewer
    events than the coordinator has lost some: it shows what it has, and is set apart.

    Args:
        way: how the node goes on.
        reconciled: whether its own store knows what it released.
        cursor: the last event that the coordinator has.
        head: the node's last event.
        hash_at_cursor: the node's hash of the event at the cursor; empty if it is not kept.
    """
    return not reconciled or (way is Course.TELL_AGAIN and not hash_at_cursor and cursor.seq < head.seq)


def command_cursor(seen: CoordinatorSeen, told: CoordinatorTold, *, restored: bool) -> Head:
    """Return where a node goes on with its coordinator's commands.

    Where either store was restored, behind what the coordinator knows to be
    applied. Whatever the node's own cursor says may be of another history, of
    which the coordinator knows nothing any more. A command that comes twice
    does no harm: an offer is known by its run, and a cancelled run is
    cancelled. A node that has forgotten what it applied is offered every run again.

    Args:
        seen: what the node keeps.
        told: what the coordinator says.
        restored: whether either store was.
    """
    return told.command_base if restored else seen.commands


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """What a coordinator knows of a node's store. ``uuid`` empty: nothing yet.

    ``reconciling``: two operators have said that the store was restored.
    """

    uuid: str
    generation: int
    event_cursor: Head
    reconciling: bool = False


def store_fault(seen: NodeSeen, *, uuid: str, generation: int) -> str:
    """Return why the node's store is not the one that is known; empty if it is.

    A new store is accepted only while nothing of the old one was applied: a
    second history under one node's name is never merged into the first. A
    restored one is accepted once, when two operators have said so.
    """
    if not seen.uuid or (seen.event_cursor.seq == 0 and uuid != seen.uuid):
        # Nothing of it is known here; it may have forgotten all the same, and waits for two operators itself.
        unknown = generation > _FIRST_GENERATION and not seen.reconciling
        return "the node's store was restored from a backup; it has to be reconciled" if unknown else ""
    if uuid != seen.uuid:
        return "the node came with another store"
    if generation < seen.generation:
        return "the node's store is of an older generation"
    if generation > seen.generation and not seen.reconciling:
        return "the node's store was restored from a backup; it has to be reconciled"
    if generation == seen.generation and seen.reconciling:
        return "the node's store was not restored by `hansa-node restore`; its generation is the old one"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a node shows under the new epoch: the last event, the hash at the coordinator's cursor, its own cursor."""

    event_head: Head
    hash_at_event_cursor: bytes
    command_cursor: Head


def node_lost_events(proof: Proof, event_cursor: Head) -> bool:
    """Say whether the node's events do not continue what was received: restored by hand, or a fork."""
    return not heads_agree(event_cursor, proof.event_head, proof.hash_at_event_cursor)


def node_lost_commands(proof: Proof, base: Head) -> bool:
    """Say whether the node has forgotten commands that it had acknowledged.

    Args:
        proof: what the node shows.
        base: the last command that it is known to have applied.
    """
    return proof.command_cursor.seq < base.seq


def coordinator_lost_commands(proof: Proof, command_head: Head, hash_at_cursor: bytes) -> bool:
    """Say whether the node has applied a command that the coordinator does not hold.

    Args:
        proof: what the node shows.
        command_head: the coordinator's last command for the node.
        hash_at_cursor: the coordinator's hash of the command at the node's
            cursor; empty if there is none.
    """
    return not heads_agree(proof.command_cursor, command_head, hash_at_cursor)
