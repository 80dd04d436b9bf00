"""Checkpoints of our log with their cosignatures, and what was seen of the nodes' logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from coordinator.store.audit_models import CheckpointRow, CosignatureRow, ReleaseProofRow, WitnessedLogRow
from coordinator.store.people_models import NodeRow
from hansa.contract.notes import Note, parse_line, parse_note
from hansa.contract.witnessing import Seen

# Newer ones prove what older ones proved.
CHECKPOINTS_KEPT: Final = 64
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class OwnCheckpoint:
    """A checkpoint of our log, and who has cosigned it."""

    note: Note
    made_at: datetime
    cosigners: frozenset[str]

    @property
    def size(self) -> int:
        """How many entries it covers."""
        return self.note.checkpoint.size


@dataclass(frozen=True, slots=True)
class NodeLog:
    """What was seen of a node's log; ``conflict`` is the checkpoint that did not continue it."""

    seen: Seen
    note: bytes
    cosignature: bytes
    conflict: bytes


@dataclass(frozen=True, slots=True)
class ReleaseProof:
    """A node's proof that its entry of a release stands in its log."""

    run_id: str
    note: bytes
    index: int
    entry: bytes
    proof: tuple[bytes, ...]


class CheckpointRepository:
    """Our own checkpoints, newest first."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, note: Note, made_at: datetime) -> None:
        """Keep a new checkpoint, and forget those that nobody needs any more."""
        self._session.add(CheckpointRow(size=note.checkpoint.size, note=note.to_bytes(), made_at=made_at))
        self._session.flush()
        sizes = select(CheckpointRow.size).order_by(CheckpointRow.size.desc()).offset(CHECKPOINTS_KEPT).limit(1)
        last = self._session.scalar(sizes)
        if last is not None:
            self._session.execute(delete(CosignatureRow).where(CosignatureRow.size <= last))
            self._session.execute(delete(CheckpointRow).where(CheckpointRow.size <= last))

    def newest(self) -> OwnCheckpoint | None:
        """Return the newest checkpoint."""
        return next(iter(self._found(1)), None)

    def all(self) -> Sequence[OwnCheckpoint]:
        """Return those that are kept, the newest first."""
        return self._found(CHECKPOINTS_KEPT)

    def at(self, size: int) -> Note | None:
        """Return the checkpoint of that size."""
        row = self._session.get(CheckpointRow, size)
        return None if row is None else parse_note(row.note)

    def cosign(self, size: int, node: str, line: bytes) -> None:
        """Keep a node's verified cosignature of the checkpoint of that size."""
        row = self._session.get(CosignatureRow, (size, node))
        if row is None:
            self._session.add(CosignatureRow(size=size, node=node, line=line))
            self._session.flush()

    def connected(self) -> frozenset[str]:
        """Return the nodes that could cosign now."""
        return frozenset(self._session.scalars(select(NodeRow.node).where(NodeRow.connected)))

    def _found(self, limit: int) -> Sequence[OwnCheckpoint]:
        rows = self._session.scalars(select(CheckpointRow).order_by(CheckpointRow.size.desc()).limit(limit)).all()
        lines: dict[int, dict[str, bytes]] = {row.size: {} for row in rows}
        for one in self._session.scalars(select(CosignatureRow).where(CosignatureRow.size.in_(lines))):
            lines[one.size][one.node] = one.line
        return [_own(row, lines[row.size]) for row in rows]


def _own(row: CheckpointRow, lines: Mapping[str, bytes]) -> OwnCheckpoint:
    cosignatures = [parse_line(lines[node]) for node in sorted(lines)]
    return OwnCheckpoint(parse_note(row.note).plus(*cosignatures), row.made_at, frozenset(lines))


class NodeLogRepository:
    """What is witnessed of the nodes' logs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, node: str) -> NodeLog:
        """Return what was seen of the node's log; the row is held until the transaction ends."""
        row = self._row(node)
        if row is None:
            return NodeLog(Seen(), b"", b"", b"")
        return NodeLog(Seen(row.size, row.root), row.note, row.cosignature, row.conflict)

    def put(self, node: str, log: NodeLog, at: datetime) -> None:
        """Store what was seen of the node's log."""
        row = self._row(node)
        if row is None:
            row = WitnessedLogRow(node=node)
            self._session.add(row)
        row.size, row.root = log.seen.size, log.seen.root
        row.note, row.cosignature, row.conflict, row.at = log.note, log.cosignature, log.conflict, at
        self._session.flush()

    def _row(self, node: str) -> WitnessedLogRow | None:
        return self._session.get(WitnessedLogRow, node, with_for_update=True)


class ReleaseProofRepository:
    """The nodes' proofs, one for each run that released."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, proof: ReleaseProof) -> None:
        """Keep a proof; the first of a run stands."""
        if self._session.get(ReleaseProofRow, proof.run_id) is None:
            row = ReleaseProofRow(
                run_id=proof.run_id,
                note=proof.note,
                index=proof.index,
                entry=proof.entry,
                proof=b"".join(proof.proof),
            )
            self._session.add(row)
            self._session.flush()

    def get(self, run_id: str) -> ReleaseProof | None:
        """Return the run's proof, if it has come."""
        row = self._session.get(ReleaseProofRow, run_id)
        if row is None:
            return None
        hashes = tuple(row.proof[at : at + _HASH_BYTES] for at in range(0, len(row.proof), _HASH_BYTES))
        return ReleaseProof(row.run_id, row.note, row.index, row.entry, hashes)
