"""The tables of the trust repository's mirror, and of what waits for a second operator."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Index, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.store.base import Base, UtcDateTime

_OPEN: Final[Any] = text("state = 'OPEN'")


class TrustMetadataRow(Base):
    """A signed metadata file of the repository, byte for byte.

    All versions of root and targets stay: who was away long needs the roots in
    between, and an old job is verified against the directory of its time.
    """

    __tablename__ = "trust_metadata"

    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    # SHA-256, in hexadecimal: an invitation names a root by it.
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class TrustTargetRow(Base):
    """A target file of the repository under its SHA-256 (hexadecimal)."""

    __tablename__ = "trust_targets"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class TrustStateRow(Base):
    """Which version is in force: one row.

    ``pinned_root`` is the version that this coordinator trusted first;
    ``directory_sha256`` names the target with the directory.
    """

    __tablename__ = "trust_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    pinned_root: Mapped[int] = mapped_column(BigInteger)
    root_version: Mapped[int] = mapped_column(BigInteger)
    targets_version: Mapped[int] = mapped_column(BigInteger)
    snapshot_version: Mapped[int] = mapped_column(BigInteger)
    timestamp_version: Mapped[int] = mapped_column(BigInteger)
    directory_version: Mapped[int] = mapped_column(BigInteger)
    directory_sha256: Mapped[str] = mapped_column(String(64))
    in_force_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ProposalRow(Base):
    """What one operator has asked for and a second has to ask for too.

    ``digest`` is of the method and its arguments: the same call again meets
    the same proposal.
    """

    __tablename__ = "proposals"
    __table_args__ = (Index("uq_proposals_open", "digest", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),)

    proposal_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    method: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(Text)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    proposed_by: Mapped[str] = mapped_column(String(64))
    proposed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[str] = mapped_column(String(16))
    closed_by: Mapped[str] = mapped_column(String(64))
