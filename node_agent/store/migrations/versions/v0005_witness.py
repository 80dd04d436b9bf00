"""what was seen of the coordinator's log, and the entries of releases whose proof is due"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from node_agent.store.models import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "witness",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("cosignature", sa.LargeBinary(), nullable=False),
        sa.Column("conflict", sa.LargeBinary(), nullable=False),
        sa.Column("conflict_at", UtcDateTime(), nullable=True),
        sa.Column("own_note", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "logged_releases",
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("index"),
    )


def downgrade() -> None:
    op.drop_table("logged_releases")
    op.drop_table("witness")
