"""The tables of people, nodes and what may be asked."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.store.base import Base, UtcDateTime

_NODE: Final = "nodes.node"
_LISTED: Final[Any] = text("listed")


def _only_one(table: str, state: str) -> Index:
    """Return the index that lets each node have one row of ``state``."""
    condition: Any = text(f"state = '{state}'")
    return Index(f"uq_{table}_{state.lower()}", "node", unique=True, sqlite_where=condition, postgresql_where=condition)


class FederationRow(Base):
    """The federation itself: one row.

    ``store_uuid`` names this store and ``generation`` grows when it is
    restored from a backup, so that a node notices either. ``term`` grows with
    each coordinator that begins to serve it, so that an older one notices.
    """

    __tablename__ = "federation"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    store_uuid: Mapped[str] = mapped_column(String(36))
    generation: Mapped[int] = mapped_column(BigInteger)
    term: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class PersonRow(Base):
    """A person of the directory in force; ``roles`` are separated by blanks."""

    __tablename__ = "persons"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    organisation: Mapped[str] = mapped_column(String(64))
    roles: Mapped[str] = mapped_column(Text)
    signing_key: Mapped[str] = mapped_column(String(44))


class NodeRow(Base):
    """A node: its membership, and where its session and its outbox stand.

    ``connected``, ``since``, ``epoch``, the node's store (``store_uuid``,
    ``generation``) and the event cursor are written by the session service.
    """

    __tablename__ = "nodes"

    node: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(24))
    key_fingerprint: Mapped[str] = mapped_column(String(71), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    connected: Mapped[bool] = mapped_column(default=False)
    since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    store_uuid: Mapped[str] = mapped_column(String(64), default="")
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    event_cursor_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    event_cursor_hash: Mapped[bytes] = mapped_column(LargeBinary, default=b"\0" * 32)
    # Two operators have said that its store was restored from a backup; until it attaches.
    reconciling: Mapped[bool] = mapped_column(default=False, server_default=false())
    # By how much its clock was ahead of ours when that changed last; None before its first heartbeat.
    clock_ahead_seconds: Mapped[int | None] = mapped_column(BigInteger)


class CredentialRow(Base):
    """A certificate of a node; the serial number in hexadecimal."""

    __tablename__ = "credentials"
    __table_args__ = (_only_one("credentials", "PENDING"), _only_one("credentials", "ACTIVE"))

    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    node: Mapped[str] = mapped_column(ForeignKey(_NODE), index=True)
    state: Mapped[str] = mapped_column(String(16))
    not_after: Mapped[datetime] = mapped_column(UtcDateTime)
    key_fingerprint: Mapped[str] = mapped_column(String(71))
    certificate_pem: Mapped[str] = mapped_column(Text)
    issued_at: Mapped[datetime] = mapped_column(UtcDateTime)


class InvitationRow(Base):
    """The one standing invitation of a node; the secret only as its SHA-256."""

    __tablename__ = "invitations"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    node: Mapped[str] = mapped_column(ForeignKey(_NODE), unique=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Fingerprint of the first public key that presented the secret.
    redeemed_by: Mapped[str | None] = mapped_column(String(71))
    inviter: Mapped[str] = mapped_column(String(64))


class AnalysisRow(Base):
    """An analysis under its bundle's digest; never changed but for ``listed``.

    ``listed``: the trust repository in force approves it. One that it approves
    no more stays, for the jobs that name it. ``rank`` puts versions in their
    numeric order as text.
    """

    __tablename__ = "analyses"
    __table_args__ = (
        Index("uq_analyses_listed", "name", "version", unique=True, sqlite_where=_LISTED, postgresql_where=_LISTED),
    )

    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(16))
    rank: Mapped[str] = mapped_column(String(16))
    manifest: Mapped[bytes] = mapped_column(LargeBinary)
    listed: Mapped[bool]


class DatasetRow(Base):
    """A dataset as its node last reported it."""

    __tablename__ = "datasets"

    node: Mapped[str] = mapped_column(ForeignKey(_NODE), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    build: Mapped[str] = mapped_column(String(16))
    snapshot: Mapped[str] = mapped_column(String(71))


class AuditRow(Base):
    """What somebody did; only ever appended. Indexes are dense and start at 1."""

    __tablename__ = "audit"

    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(Text)


class AuditLeafRow(Base):
    """An act as the tree has it, under its index in ``audit``: leaf ``index - 1``.

    ``body`` is what is hashed; of actor and subject it holds keyed hashes.
    Without ``salt`` nobody finds the words from those. ``job`` repeats the
    fact of that name, to find a job's entries by.
    """

    __tablename__ = "audit_leaves"

    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    salt: Mapped[bytes | None] = mapped_column(LargeBinary)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    leaf_hash: Mapped[bytes] = mapped_column(LargeBinary)
    job: Mapped[str | None] = mapped_column(String(36), index=True)


class AuditNodeRow(Base):
    """The hash of a complete subtree above the leaves: level 1 has two leaves each."""

    __tablename__ = "audit_nodes"

    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class RequestRow(Base):
    """The first answer to a mutating call, for its repeats."""

    __tablename__ = "requests"

    caller: Mapped[str] = mapped_column(String(80), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    method: Mapped[str] = mapped_column(String(128))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    response: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
