"""The tables of the audit logs' checkpoints: our own, and what is witnessed of the nodes'."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.store.base import Base, UtcDateTime


class CheckpointRow(Base):
    """A checkpoint of this log that was told to nodes; ``note`` has the log's own signature only."""

    __tablename__ = "checkpoints"

    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    note: Mapped[bytes] = mapped_column(LargeBinary)
    made_at: Mapped[datetime] = mapped_column(UtcDateTime)


class CosignatureRow(Base):
    """A node's verified cosignature of a checkpoint, as its line."""

    __tablename__ = "cosignatures"

    size: Mapped[int] = mapped_column(ForeignKey("checkpoints.size"), primary_key=True, autoincrement=False)
    node: Mapped[str] = mapped_column(ForeignKey("nodes.node"), primary_key=True)
    line: Mapped[bytes] = mapped_column(LargeBinary)


class WitnessedLogRow(Base):
    """What was seen last of a node's log: the newest checkpoint that continued all before.

    ``conflict`` is a checkpoint of the same node that did not; empty while all is well.
    """

    __tablename__ = "witnessed_logs"

    node: Mapped[str] = mapped_column(ForeignKey("nodes.node"), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    root: Mapped[bytes] = mapped_column(LargeBinary)
    note: Mapped[bytes] = mapped_column(LargeBinary)
    cosignature: Mapped[bytes] = mapped_column(LargeBinary)
    conflict: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class ReleaseProofRow(Base):
    """A node's proof that the entry of a release stands in its log."""

    __tablename__ = "release_proofs"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    note: Mapped[bytes] = mapped_column(LargeBinary)
    index: Mapped[int] = mapped_column(BigInteger)
    entry: Mapped[bytes] = mapped_column(LargeBinary)
    # The hashes of the proof, one after the other.
    proof: Mapped[bytes] = mapped_column(LargeBinary)
