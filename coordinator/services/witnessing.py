"""Heartbeats as witnesses: what the coordinator and a node tell each other of their audit logs.

One transaction per heartbeat that has news: what was verified is stored before
it is answered, so that a checkpoint that we cosigned is never forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy.orm import Session

from coordinator.services.desk import Turn
from coordinator.services.nodes import quarantine_node
from coordinator.services.reports import standing_under
from coordinator.services.trust import directory_in_force
from coordinator.store.audit import AuditRepository
from coordinator.store.witnesses import CheckpointRepository, NodeLog, NodeLogRepository, OwnCheckpoint
from hansa.contract.directory import Directory
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.contract.notes import (
    Checkpoint,
    Note,
    check_proof,
    coordinator_origin,
    cosign,
    cosigned_at,
    node_origin,
    open_checkpoint,
    parse_line,
    parse_note,
    sign_checkpoint,
)
from hansa.contract.raw_keys import signing_key
from hansa.contract.witnessing import NO_NEWS, Growth, LogNews, Seen, growth, needed_of

_log = structlog.get_logger(__name__)

# Until then a checkpoint waits for the nodes that are connected, so that they all cosign one.
CHECKPOINT_SETTLES: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class LogKeeper:
    """What the coordinator's log is signed with, and whose cosignatures count: those of the directory in force."""

    federation: str
    key: Ed25519PrivateKey
    directory: Callable[[Session], Directory] = directory_in_force

    @property
    def origin(self) -> str:
        """The name of the coordinator's log, and of its key."""
        return coordinator_origin(self.federation)

    def node_key(self, session: Session, node: str) -> Ed25519PublicKey | None:
        """Return what the node signs its checkpoints with; None if it is not in the directory."""
        known = self.directory(session).node(node)
        return None if known is None else signing_key(known.signing_key)

    def witnesses(self, session: Session) -> frozenset[str]:
        """Return the nodes whose cosignatures count."""
        return frozenset(self.directory(session).witnesses)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a node said of logs in one heartbeat, and what its session has been told last."""

    node: NodeId
    epoch: int
    news: LogNews
    told: int


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What to answer, or the reason of a quarantine, which is committed."""

    answer: LogNews = NO_NEWS
    quarantined: str = ""


def exchange(session: Session, keeper: LogKeeper, heard: Heard, turn: Turn) -> Exchanged:
    """Take in what a node says of its log and of ours; return what it is to be told.

    Raises:
        HansaError: ``NOTE_INVALID``, what the node sent is malformed;
            ``EPOCH_FENCED``; or what the node's state says.
    """
    check_proof(heard.news.proof)
    standing_under(session, heard.node, heard.epoch)
    _keep_cosignature(session, keeper, heard)
    log, is_news = _witness(session, keeper, heard, turn.now)
    if log.conflict:
        _raise_alarm(session, heard.node, log, turn.now)
        return Exchanged(quarantined=Reason.LOG_FORKED.value)
    answer = _tidings(session, keeper, heard, turn.now)
    cosignature = log.cosignature if is_news else b""
    return Exchanged(replace(answer, witnessed_size=log.seen.size, cosignature=cosignature))


def _keep_cosignature(session: Session, keeper: LogKeeper, heard: Heard) -> None:
    if not heard.news.cosignature:
        return
    line = parse_line(heard.news.cosignature)
    checkpoints = CheckpointRepository(session)
    note, key = checkpoints.at(heard.news.witnessed_size), keeper.node_key(session, heard.node)
    name = node_origin(keeper.federation, heard.node)
    if note is None or key is None or cosigned_at(note.checkpoint, line, name=name, key=key) is None:
        # The key of a node that is not in the directory (yet), or a checkpoint that we let go.
        _log.warning("cosignature_refused", node=heard.node, size=heard.news.witnessed_size)
        return
    checkpoints.cosign(note.checkpoint.size, heard.node, line.to_bytes())


def _witness(session: Session, keeper: LogKeeper, heard: Heard, now: datetime) -> tuple[NodeLog, bool]:
    """Return what is known of the node's log now, and whether the node told something of it."""
    logs = NodeLogRepository(session)
    log = _after_resumption(session, logs, heard.node, now)
    note = _verified(session, keeper, heard)
    if note is None:
        return log, False
    match growth(log.seen, note.checkpoint, proven_from=heard.news.proven_from, proof=heard.news.proof):
        case Growth.UNPROVEN:
            return log, False
        case Growth.SAME if log.cosignature:
            return log, True
        case Growth.SAME | Growth.GROWN:
            line = cosign(note.checkpoint, name=keeper.origin, key=keeper.key, seconds=int(now.timestamp()))
            log = NodeLog(_seen(note.checkpoint), note.to_bytes(), line.to_bytes(), b"")
        case Growth.FORKED:
            log = replace(log, conflict=note.to_bytes())
    logs.put(heard.node, log, now)
    return log, True


def _after_resumption(session: Session, logs: NodeLogRepository, node: str, now: datetime) -> NodeLog:
    """Return what is known of the node's log; what two operators have resumed it with is taken over."""
    log = logs.get(node)
    if not log.conflict:
        return log
    accepted = parse_note(log.conflict).checkpoint
    facts: dict[str, str | int] = {"node": node, "size": accepted.size, "root": accepted.root.hex()}
    AuditRepository(session).append(at=now, actor="coordinator", action="node_log_accepted", subject=node, facts=facts)
    log = NodeLog(_seen(accepted), log.conflict, b"", b"")
    logs.put(node, log, now)
    return log


def _seen(checkpoint: Checkpoint) -> Seen:
    return Seen(checkpoint.size, checkpoint.root)


def _verified(session: Session, keeper: LogKeeper, heard: Heard) -> Note | None:
    """Return the node's checkpoint; None where it sent none, or its key is not known."""
    data = heard.news.checkpoint
    if not data:
        return None
    parse_note(data)
    key = keeper.node_key(session, heard.node)
    try:
        if key is None:
            raise HansaError(Reason.NOTE_INVALID, log="the node is not in the directory")
        return open_checkpoint(data, origin=node_origin(keeper.federation, heard.node), key=key)
    except HansaError as error:
        # It gets no job before the directory has its key; until then its log is not witnessed.
        _log.warning("node_checkpoint_not_verified", node=heard.node, detail=str(error))
        return None


def _raise_alarm(session: Session, node: NodeId, log: NodeLog, now: datetime) -> None:
    told = parse_note(log.conflict).checkpoint
    _log.error("node_log_forked", node=node, seen_size=log.seen.size, told_size=told.size)
    facts: dict[str, str | int] = {
        "node": node,
        "seen_size": log.seen.size,
        "seen_root": log.seen.root.hex(),
        "told_size": told.size,
        "told_root": told.root.hex(),
    }
    AuditRepository(session).append(at=now, actor="coordinator", action="node_log_forked", subject=node, facts=facts)
    quarantine_node(session, node, Reason.LOG_FORKED.value, now)


def _tidings(session: Session, keeper: LogKeeper, heard: Heard, now: datetime) -> LogNews:
    own = current_checkpoint(session, keeper, now)
    known = heard.news.witnessed_size
    if own is None or own.size == heard.told == known:
        return NO_NEWS
    if known > own.size:
        # Our store was restored from a backup, or cut. The node will say so to its operator.
        _log.error("own_log_behind_a_witness", node=heard.node, size=own.size, witnessed_size=known)
        return LogNews(_own_note(own))
    return LogNews(_own_note(own), known, AuditRepository(session).consistency(known, own.size))


def _own_note(own: OwnCheckpoint) -> bytes:
    return Note(own.note.checkpoint, own.note.lines[:1]).to_bytes()


def current_checkpoint(session: Session, keeper: LogKeeper, now: datetime) -> OwnCheckpoint | None:
    """Return the checkpoint to tell: a new one if the log has grown and the last one is settled.

    It is settled once all connected nodes have cosigned it, or after some time:
    nodes that are told the same checkpoint are witnesses of the same tree.
    """
    checkpoints = CheckpointRepository(session)
    newest, size = checkpoints.newest(), AuditRepository(session).size()
    if newest is not None and (newest.size >= size or not _is_settled(newest, checkpoints.connected(), now)):
        return newest
    if not size:
        return None
    note = sign_checkpoint(Checkpoint(keeper.origin, size, AuditRepository(session).root(size)), keeper.key)
    checkpoints.add(note, now)
    return OwnCheckpoint(note, now, frozenset())


def _is_settled(newest: OwnCheckpoint, connected: frozenset[str], now: datetime) -> bool:
    return connected <= newest.cosigners or now - newest.made_at >= CHECKPOINT_SETTLES


def published_checkpoint(session: Session, keeper: LogKeeper, now: datetime, *, covering: int = 0) -> Note | None:
    """Return the newest checkpoint that enough witnesses have cosigned, else the newest.

    Args:
        session: the transaction.
        keeper: whose witnesses count.
        now: aware time.
        covering: how many entries it must cover, if there is one that does.
    """
    current_checkpoint(session, keeper, now)
    found = CheckpointRepository(session).all()
    covers = [one for one in found if one.size >= covering] or found[:1]
    witnesses = keeper.witnesses(session)
    needed = needed_of(len(witnesses))
    best = next((one for one in covers if len(one.cosigners & witnesses) >= needed), next(iter(covers), None))
    return None if best is None else best.note
