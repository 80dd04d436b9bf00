"""The tables of a node's own database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Index, LargeBinary, String, Text, TypeDecorator, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hansa.contract.digests import CHAIN_START


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python; SQLite forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """Refuse naive times, which would be ambiguous later."""
        if value is not None and value.tzinfo is None:
            raise ValueError("naive datetime")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """Give the zone back."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    """The node's schema."""

    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: JSON(), list[Any]: JSON()}  # noqa: RUF012


class StoreRow(Base):
    """One row: which store this is and how far the coordinator's commands are applied."""

    __tablename__ = "store"

    id: Mapped[int] = mapped_column(primary_key=True)
    store_uuid: Mapped[str] = mapped_column(String(36))
    generation: Mapped[int]
    command_seq: Mapped[int]
    command_hash: Mapped[bytes] = mapped_column(LargeBinary)
    coordinator_uuid: Mapped[str] = mapped_column(String(36))
    # As it was at the last attach; a higher one says that the coordinator's store was restored.
    coordinator_generation: Mapped[int] = mapped_column(server_default="1")
    # The last event that the coordinator has acknowledged.
    event_acked: Mapped[int] = mapped_column(server_default="0")
    # Where the outbox begins: the place before its first event.
    event_base_seq: Mapped[int] = mapped_column(server_default="0")
    event_base_hash: Mapped[bytes] = mapped_column(LargeBinary, server_default=text(f"x'{CHAIN_START.hex()}'"))
    # Up to this generation, what the coordinator had recorded was adopted; a lower one than
    # ``generation`` says that nothing may be started or released yet.
    reconciled_generation: Mapped[int] = mapped_column(server_default="1")


class EventRow(Base):
    """The outbox towards the coordinator: numbered, hash-chained, never rewritten.

    ``acked_at``: when the node noted that the coordinator has it, some time
    after it was so.
    """

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    prev_hash: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    acked_at: Mapped[datetime | None]


class RunRow(Base):
    """A run at this node. ``payload`` and ``signature`` are the job as signed."""

    __tablename__ = "runs"
    __table_args__ = (Index("runs_by_state", "state"),)

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(36))
    round: Mapped[int]
    attempt: Mapped[int]
    execution: Mapped[int]
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(String(40))
    incident: Mapped[str] = mapped_column(String(32))
    payload_type: Mapped[str] = mapped_column(String(100))
    # Loaded by who asks for it: the scheduler reads all open runs each second.
    payload: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    key_id: Mapped[str] = mapped_column(String(64))
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    submitter: Mapped[str] = mapped_column(String(64))
    analysis: Mapped[str] = mapped_column(String(100))
    dataset: Mapped[str] = mapped_column(String(64))
    parameters: Mapped[dict[str, Any]]
    limits: Mapped[dict[str, Any]]
    not_after: Mapped[datetime]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    # When the message went to the broker, and when a worker last gave a sign.
    enqueued_at: Mapped[datetime | None]
    beat_at: Mapped[datetime | None]
    worker: Mapped[str] = mapped_column(String(64))


class SummaryRow(Base):
    """A cleared summary in the airlock and, once released, in the spool.

    ``summary`` is what the rules cleared and what people decide on. ``outgoing``
    is what leaves, byte for byte: the summary or its sealed form; ``statement``
    is the signed statement of it (DSSE JSON). Both are made once, with the
    release. ``decision`` is empty while the summary waits.
    """

    __tablename__ = "summaries"

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    attempt: Mapped[int]
    execution: Mapped[int]
    summary: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    checks: Mapped[list[Any]]
    created_at: Mapped[datetime]
    decision: Mapped[str] = mapped_column(String(10))
    decided_by: Mapped[str] = mapped_column(String(64))
    decision_reason: Mapped[str] = mapped_column(String(1000))
    decided_at: Mapped[datetime | None]
    uploaded_at: Mapped[datetime | None]
    # A summary that waited when the column came goes on waiting for one person at least.
    release_class: Mapped[str] = mapped_column(String(8), server_default="manual")
    outgoing: Mapped[bytes | None] = mapped_column(LargeBinary)
    statement: Mapped[bytes | None] = mapped_column(LargeBinary)


class ReleaseDecisionRow(Base):
    """An output checker's decision on a summary that waits: one per person, as they signed it."""

    __tablename__ = "release_decisions"

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    checker: Mapped[str] = mapped_column(String(64), primary_key=True)
    decision: Mapped[str] = mapped_column(String(10))
    # Of the signed payload.
    digest: Mapped[str] = mapped_column(String(71))
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    decided_at: Mapped[datetime]


class DatasetRow(Base):
    """A dataset and its pinned snapshot; ``info`` is the snapshot's description."""

    __tablename__ = "datasets"

    dataset_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    snapshot: Mapped[str] = mapped_column(String(71))
    build: Mapped[str] = mapped_column(String(16))
    folder: Mapped[str] = mapped_column(String(4096))
    info: Mapped[dict[str, Any]]
    added_at: Mapped[datetime]


class AuditLeafRow(Base):
    """An entry of the audit log: the bytes that are hashed. Indexes are dense and start at 0."""

    __tablename__ = "audit_leaves"

    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    leaf_hash: Mapped[bytes] = mapped_column(LargeBinary)


class AuditNodeRow(Base):
    """The hash of a complete subtree above the leaves: level 1 has two leaves each."""

    __tablename__ = "audit_nodes"

    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class AuditSubjectRow(Base):
    """Words in or about a person that an entry holds as a keyed hash only.

    The row may be deleted: without the salt nobody finds the text from the
    hash, and the tree stands as it stood.
    """

    __tablename__ = "audit_subjects"

    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    text: Mapped[str] = mapped_column(Text)


class WitnessRow(Base):
    """One row: what was seen of the coordinator's log, and what the coordinator has seen of ours.

    ``note`` is the coordinator's last checkpoint that continued all before,
    and ``cosignature`` our line on it. ``conflict`` is one that did not; it
    stays, and no offer is accepted, until the operator takes that log over.
    ``own_note`` is our newest checkpoint with the coordinator's cosignature.
    """

    __tablename__ = "witness"

    id: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int]
    root: Mapped[bytes] = mapped_column(LargeBinary)
    note: Mapped[bytes] = mapped_column(LargeBinary)
    cosignature: Mapped[bytes] = mapped_column(LargeBinary)
    conflict: Mapped[bytes] = mapped_column(LargeBinary)
    conflict_at: Mapped[datetime | None]
    own_note: Mapped[bytes] = mapped_column(LargeBinary)


class LoggedReleaseRow(Base):
    """The entry of a release, until its proof is in an event for the coordinator (``told``)."""

    __tablename__ = "logged_releases"

    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int]
    told: Mapped[bool]


class TrustRow(Base):
    """One row: the newest directory that was ever in force here; an older one never is again."""

    __tablename__ = "trust"

    id: Mapped[int] = mapped_column(primary_key=True)
    directory_version: Mapped[int]
    targets_version: Mapped[int]
    checked_at: Mapped[datetime]


class LedgerRow(Base):
    """A signed job that came here. Outlives its run, until its bytes would be refused as too old anyway."""

    __tablename__ = "job_ledger"

    job_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    nonce: Mapped[str] = mapped_column(String(32), unique=True)
    # Digest of the envelope, with its signature.
    digest: Mapped[str] = mapped_column(String(71))
    keep_until: Mapped[datetime]


class ApprovalRow(Base):
    """A data holder's signed yes, as it was signed. Revoked ones stay, with who revoked them."""

    __tablename__ = "approvals"
    __table_args__ = (Index("approvals_by_scope", "scope"),)

    approval_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    # What it may speak of: ``project/name@version`` of a standing one, the job's id of another.
    scope: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(71))
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    approver: Mapped[str] = mapped_column(String(64))
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    added_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[str] = mapped_column(String(64))


class RunApprovalRow(Base):
    """Under which approval a run was admitted, and when."""

    __tablename__ = "run_approvals"

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    approval_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71))
    at: Mapped[datetime]
