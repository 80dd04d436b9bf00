"""Jobs, their runs and summaries, and the two outboxes per node.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.store.base import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _jobs()
    _runs()
    _outboxes()
    _summaries()


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("submitter", sa.String(64), nullable=False),
        sa.Column("payload_type", sa.String(64), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("envelope_digest", sa.String(71), nullable=False),
        sa.Column("analysis_name", sa.String(64), nullable=False),
        sa.Column("analysis_version", sa.String(16), nullable=False),
        sa.Column("analysis_digest", sa.String(71), nullable=False),
        sa.Column("quorum", sa.Integer(), nullable=False),
        sa.Column("submitted_at", UtcDateTime(), nullable=False),
        sa.Column("not_after", UtcDateTime(), nullable=False),
        sa.Column("cancel_requested_at", UtcDateTime(), nullable=True),
        sa.Column("cancel_request_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_submitter_submitted_at", "jobs", ["submitter", "submitted_at"])
    op.create_index("ix_jobs_submitted_at", "jobs", ["submitted_at"])
    op.create_index("ix_jobs_state_not_after", "jobs", ["state", "not_after"])


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("execution", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("incident", sa.String(32), nullable=False),
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("released_digest", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_runs_job_id_jobs"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_runs_node_nodes"),
        sa.UniqueConstraint("job_id", "node", "round", name="uq_runs_job_id"),
    )
    op.create_index("ix_runs_node_state", "runs", ["node", "state"])


def _outboxes() -> None:
    op.create_table(
        "commands",
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("prev_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("acked", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("node", "seq", name="pk_commands"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_commands_node_nodes"),
    )
    op.create_table(
        "events",
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node", "seq", name="pk_events"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_events_node_nodes"),
    )


def _summaries() -> None:
    op.create_table(
        "summaries",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("empty", sa.Boolean(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("stored_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_summaries"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_summaries_run_id_runs"),
    )
