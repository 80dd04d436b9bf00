"""Rows of jobs, their runs, summaries and release statements, and of the two outboxes per node.

The classes declare the tables; the repositories read and write the tables
themselves. A row object per row costs six times as much, and these tables are
on the way of every report of every node.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, cast

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, Integer, LargeBinary, String, Table, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.store.base import Base, UtcDateTime
from coordinator.store.people_models import NodeRow


class JobRow(Base):
    """A job as its researcher signed it, and where it stands.

    ``state`` is derived from the runs and written by the evaluation only;
    ``result`` is what the job ended with, made once.
    """

    __tablename__ = "jobs"

    job_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(64))
    payload_type: Mapped[str] = mapped_column(String(64))
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str] = mapped_column(String(64))
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    # Of type, payload, signer and signature: tells a repeat from a reuse of the id.
    envelope_digest: Mapped[str] = mapped_column(String(71))
    analysis_name: Mapped[str] = mapped_column(String(64))
    analysis_version: Mapped[str] = mapped_column(String(16))
    analysis_digest: Mapped[str] = mapped_column(String(71))
    quorum: Mapped[int] = mapped_column(Integer)
    submitted_at: Mapped[datetime] = mapped_column(UtcDateTime)
    not_after: Mapped[datetime] = mapped_column(UtcDateTime)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancel_request_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    result: Mapped[bytes | None] = mapped_column(LargeBinary)

    __table_args__ = (
        Index("ix_jobs_submitter_submitted_at", "submitter", "submitted_at"),
        Index("ix_jobs_submitted_at", "submitted_at"),
        Index("ix_jobs_state_not_after", "state", "not_after"),
    )


class RunRow(Base):
    """One run as the coordinator knows it from the node's reports."""

    __tablename__ = "runs"

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id"))
    # Its place in the researcher's order of nodes.
    position: Mapped[int] = mapped_column(Integer)
    node: Mapped[str] = mapped_column(ForeignKey("nodes.node"))
    round: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    execution: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(String(64))
    incident: Mapped[str] = mapped_column(String(32))
    dataset: Mapped[str] = mapped_column(String(64))
    # SHA-256 that the node announced with the release; empty before.
    released_digest: Mapped[bytes] = mapped_column(LargeBinary)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (UniqueConstraint("job_id", "node", "round"), Index("ix_runs_node_state", "node", "state"))


class CommandRow(Base):
    """An entry of a node's command outbox: numbered from 1, hash-chained."""

    __tablename__ = "commands"

    node: Mapped[str] = mapped_column(ForeignKey("nodes.node"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    prev_hash: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    acked: Mapped[bool] = mapped_column(Boolean)
    acked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EventRow(Base):
    """An event of a node as it was received and applied."""

    __tablename__ = "events"

    node: Mapped[str] = mapped_column(ForeignKey("nodes.node"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class SummaryRow(Base):
    """The released summary of a run: stored once, never replaced."""

    __tablename__ = "summaries"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    size: Mapped[int] = mapped_column(BigInteger)
    # No cell in it holds a figure.
    empty: Mapped[bool] = mapped_column(Boolean)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    stored_at: Mapped[datetime] = mapped_column(UtcDateTime)


class StatementRow(Base):
    """The release statement of a run as its node signed it: stored once, never replaced."""

    __tablename__ = "statements"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    # Of the signed payload.
    digest: Mapped[str] = mapped_column(String(71))
    # SHA-256 of what left.
    subject: Mapped[bytes] = mapped_column(LargeBinary)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    stored_at: Mapped[datetime] = mapped_column(UtcDateTime)


JOBS: Final = cast("Table", JobRow.__table__)
RUNS: Final = cast("Table", RunRow.__table__)
COMMANDS: Final = cast("Table", CommandRow.__table__)
EVENTS: Final = cast("Table", EventRow.__table__)
SUMMARIES: Final = cast("Table", SummaryRow.__table__)
STATEMENTS: Final = cast("Table", StatementRow.__table__)
NODES: Final = cast("Table", NodeRow.__table__)
