"""The node as a witness: of the coordinator's log, and with a log that the coordinator witnesses.

What was verified is stored before it is cosigned, so that no two trees of one
size are ever cosigned, whatever the coordinator forgets or wants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import EMPTY_ROOT
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
from hansa.contract.witnessing import Growth, LogNews, Seen, growth
from hansa.runtime.clock import Clock
from node_agent.audit.entries import coordinator_log_accepted, coordinator_log_forked
from node_agent.audit.log import append, leaves, prove_consistency, prove_inclusion, root_of, size_of
from node_agent.store.database import Database
from node_agent.store.models import LoggedReleaseRow, WitnessRow
from node_agent.store.outbox import append_event

_log = structlog.get_logger(__name__)

_ONLY_ROW: Final = 1
# In one transaction; the others come with the next heartbeat.
_MOST_PROOFS: Final = 16


@dataclass(frozen=True, slots=True)
class ProvenRelease:
    """A release's entry with the proof that it is under a checkpoint, which is cosigned."""

    run_id: str
    attempt: int
    checkpoint: bytes
    index: int
    entry: bytes
    inclusion: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessKeys:
    """Who the node is, and whose signatures count.

    ``coordinator`` returns the log key of the directory in force, None before
    there is one; ``report`` the event that tells of a release's proof.
    """

    federation: str
    node: str
    own: Ed25519PrivateKey
    coordinator: Callable[[], Ed25519PublicKey | None]
    report: Callable[[ProvenRelease, datetime], bytes]

    @property
    def origin(self) -> str:
        """The name of the node's log, and of its key in notes."""
        return node_origin(self.federation, self.node)


@dataclass(slots=True)
class Told:
    """What one session has told and heard; a new session begins anew."""

    # Up to where the coordinator says it has seen our log; None before it said so.
    seen_by_coordinator: int | None = None
    size: int = -1
    cosigned: int = -1
    # Whether releases that the coordinator's cosignature covers are still to be proven to it.
    owes_proofs: bool = False


@dataclass(slots=True)
class LogWitness:
    """The node's side of the heartbeats' news of logs."""

    database: Database
    keys: WitnessKeys
    clock: Clock
    _alarm: bool = field(default=False, init=False)

    async def begin(self) -> None:
        """Take up an alarm that stood when the agent stopped; before offers are taken."""
        self._alarm = await self.database.run(lambda session: bool(_row(session).conflict))

    def alarm(self) -> bool:
        """Say whether the coordinator's log has forked: no offer is to be accepted."""
        return self._alarm

    async def news(self, told: Told) -> LogNews:
        """Return what the next heartbeat says of the logs; ``told`` is brought up to date."""
        return await self.database.run(lambda session: self._news(session, told))

    def _news(self, session: Session, told: Told) -> LogNews:
        row, size = _row(session), size_of(session)
        told.owes_proofs = _owes_proofs(session, _size_in(row.own_note))
        cosignature = row.cosignature if row.size != told.cosigned and not row.conflict else b""
        known, told.cosigned = told.seen_by_coordinator, row.size
        if known is None or size == told.size == known:
            return LogNews(witnessed_size=row.size, cosignature=cosignature)
        told.size = size
        if known > size:
            # Our store was restored from a backup, or cut. The coordinator sets us apart.
            _log.error("own_log_behind_its_witness", size=size, witnessed_size=known)
        proof = prove_consistency(session, known, size) if known <= size else ()
        return LogNews(self._own_note(session, size).to_bytes(), known, proof, row.size, cosignature)

    def _own_note(self, session: Session, size: int) -> Note:
        # Made anew each time: the same key and text give the same signature.
        return sign_checkpoint(Checkpoint(self.keys.origin, size, root_of(session, size)), self.keys.own)

    async def hear(self, news: LogNews, told: Told) -> bool:
        """Take in the coordinator's news; return whether there is something to answer at once.

        Raises:
            HansaError: ``NOTE_INVALID``; what came is malformed. Nothing was stored.
        """
        check_proof(news.proof)
        told.seen_by_coordinator = news.witnessed_size
        if not news.checkpoint and not news.cosignature and not told.owes_proofs:
            return False
        now = self.clock()
        goes_on, self._alarm = await self.database.run(lambda session: self._hear(session, news, now))
        return goes_on

    def _hear(self, session: Session, news: LogNews, now: datetime) -> tuple[bool, bool]:
        """Return whether there is something to answer at once, and whether the coordinator's log has forked."""
        row = _row(session)
        self._keep_cosignature(session, news)
        owes = self._prove_releases(session, row.own_note, now)
        cosigned = bool(news.checkpoint) and self._witness(session, news, now)
        return cosigned or owes, bool(row.conflict)

    def _witness(self, session: Session, news: LogNews, now: datetime) -> bool:
        """Verify and keep the coordinator's checkpoint; return whether it was cosigned anew."""
        note, row = self._verified(news.checkpoint), _row(session)
        if note is None or row.conflict:
            return False
        seen = Seen(row.size, row.root)
        match growth(seen, note.checkpoint, proven_from=news.proven_from, proof=news.proof):
            case Growth.SAME if row.cosignature:
                return False
            case Growth.UNPROVEN:
                return False
            case Growth.FORKED:
                # It stands from here on, whether or not there is room to write it down.
                self._alarm = True
                row.conflict, row.conflict_at = note.to_bytes(), now
                append(session, coordinator_log_forked(seen, note.checkpoint), now)
                told = note.checkpoint
                _log.error("coordinator_log_forked", seen_size=seen.size, told_size=told.size)
                return False
            case _:
                self._take_over(row, note, now)
                return True

    def _take_over(self, row: WitnessRow, note: Note, now: datetime) -> None:
        line = cosign(note.checkpoint, name=self.keys.origin, key=self.keys.own, seconds=int(now.timestamp()))
        row.size, row.root = note.checkpoint.size, note.checkpoint.root
        row.note, row.cosignature = note.to_bytes(), line.to_bytes()

    def _verified(self, data: bytes) -> Note | None:
        """Return the coordinator's checkpoint; None where its key is not known, or is another."""
        parse_note(data)
        key, origin = self.keys.coordinator(), coordinator_origin(self.keys.federation)
        try:
            if key is None:
                raise HansaError(Reason.NOTE_INVALID, log="there is no directory yet")
            return open_checkpoint(data, origin=origin, key=key)
        except HansaError as error:
            _log.warning("coordinator_checkpoint_not_verified", detail=str(error))
            return None

    def _keep_cosignature(self, session: Session, news: LogNews) -> None:
        key = self.keys.coordinator()
        size = news.witnessed_size
        if not news.cosignature or key is None or not 0 < size <= size_of(session):
            return
        line, note = parse_line(news.cosignature), self._own_note(session, size)
        name = coordinator_origin(self.keys.federation)
        if cosigned_at(note.checkpoint, line, name=name, key=key) is None:
            _log.warning("coordinator_cosignature_refused", size=size)
            return
        row, cosigned = _row(session), note.plus(line)
        if size >= _size_in(row.own_note):
            row.own_note = cosigned.to_bytes()

    def _prove_releases(self, session: Session, cosigned: bytes, now: datetime) -> bool:
        """Tell of some releases that ``cosigned``, our own checkpoint, covers; return whether there are more."""
        size = _size_in(cosigned)
        due = session.scalars(_unproven(size).order_by(LoggedReleaseRow.index).limit(_MOST_PROOFS)).all()
        for row in due:
            (leaf,) = leaves(session, row.index, row.index + 1)
            inclusion = prove_inclusion(session, row.index, size)
            proven = ProvenRelease(row.run_id, row.attempt, cosigned, row.index, leaf.body, inclusion)
            append_event(session, self.keys.report(proven, now), now)
            row.told = True
        return len(due) == _MOST_PROOFS and _owes_proofs(session, size)

    async def standing(self) -> dict[str, Any]:
        """Return what the operator is shown: both logs' sizes, and the alarm if there is one."""
        return await self.database.run(_standing)

    async def checkpoint(self) -> dict[str, Any]:
        """Return our newest checkpoint, signed, and the newest that the coordinator has cosigned."""

        def read(session: Session) -> dict[str, Any]:
            now, row = self._own_note(session, size_of(session)), _row(session)
            return {"checkpoint": now.to_bytes().decode(), "cosigned": row.own_note.decode()}

        return await self.database.run(read)

    async def accept_coordinator_log(self, *, by: str, reason: str) -> dict[str, Any]:
        """Take over the coordinator's log as it is told now, though it does not continue what was seen.

        Raises:
            HansaError: ``PARAMETER_MISSING``, no reason; ``NODE_STATE_CONFLICT``, there is no alarm.
        """
        if not reason.strip():
            raise HansaError(Reason.PARAMETER_MISSING, "This needs a reason.", field="reason")
        now = self.clock()

        def work(session: Session) -> dict[str, Any]:
            row = _row(session)
            if not row.conflict:
                raise HansaError(Reason.NODE_STATE_CONFLICT, "The coordinator's log has not forked.")
            note = parse_note(row.conflict)
            append(session, coordinator_log_accepted(note.checkpoint, by, reason), now)
            row.conflict, row.conflict_at = b"", None
            self._take_over(row, note, now)
            return _standing(session)

        found = await self.database.run(work)
        self._alarm = False
        return found


def _row(session: Session) -> WitnessRow:
    row = session.get(WitnessRow, _ONLY_ROW)
    if row is None:
        row = WitnessRow(
            id=_ONLY_ROW,
            size=0,
            root=EMPTY_ROOT,
            note=b"",
            cosignature=b"",
            conflict=b"",
            conflict_at=None,
            own_note=b"",
        )
        session.add(row)
        session.flush()
    return row


def _unproven(size: int) -> Select[tuple[LoggedReleaseRow]]:
    """Ask for the releases among our log's first ``size`` entries whose proof is still to be told."""
    return select(LoggedReleaseRow).where(~LoggedReleaseRow.told, LoggedReleaseRow.index < size)


def _owes_proofs(session: Session, size: int) -> bool:
    return session.scalar(_unproven(size).limit(1)) is not None


def _size_in(note: bytes) -> int:
    return parse_note(note).checkpoint.size if note else 0


def _standing(session: Session) -> dict[str, Any]:
    row = _row(session)
    alarm = None
    if row.conflict and row.conflict_at is not None:
        told = parse_note(row.conflict).checkpoint
        alarm = (
            f"since {row.conflict_at:%Y-%m-%d %H:%M} UTC: the coordinator shows a log of {told.size} entries that does "
            f"not continue the {row.size} entries that this node has seen"
        )
    return {
        "coordinator_log": row.size,
        "log": size_of(session),
        "log_seen_by_coordinator": _size_in(row.own_note),
        "log_alarm": alarm,
    }
