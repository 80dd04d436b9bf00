"""Checkpoints and their cosignatures, what is witnessed of the nodes' logs, and entries by job.

Revision ID: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.store.base import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audit_leaves", sa.Column("job", sa.String(36), nullable=True))
    op.create_index("ix_audit_leaves_job", "audit_leaves", ["job"])
    op.create_table(
        "checkpoints",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_checkpoints"),
    )
    op.create_table(
        "cosignatures",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("line", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("size", "node", name="pk_cosignatures"),
        sa.ForeignKeyConstraint(["size"], ["checkpoints.size"], name="fk_cosignatures_size_checkpoints"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_cosignatures_node_nodes"),
    )
    op.create_table(
        "witnessed_logs",
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("cosignature", sa.LargeBinary(), nullable=False),
        sa.Column("conflict", sa.LargeBinary(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_witnessed_logs"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_witnessed_logs_node_nodes"),
    )
    op.create_table(
        "release_proofs",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.Column("proof", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_release_proofs"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_release_proofs_run_id_runs"),
    )


def downgrade() -> None:
    op.drop_table("release_proofs")
    op.drop_table("witnessed_logs")
    op.drop_table("cosignatures")
    op.drop_table("checkpoints")
    op.drop_index("ix_audit_leaves_job", "audit_leaves")
    op.drop_column("audit_leaves", "job")
