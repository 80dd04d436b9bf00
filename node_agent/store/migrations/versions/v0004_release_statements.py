"""what leaves as it is sent, the signed statement of it, and the output checkers' decisions"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from node_agent.store.models import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "release_decisions",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("checker", sa.String(length=64), nullable=False),
        sa.Column("decision", sa.String(length=10), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("decided_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "checker"),
    )
    # A summary that waited under the release before keeps waiting, for one person at least; one
    # that was released then has no statement and is not sent again.
    op.add_column("summaries", sa.Column("release_class", sa.String(length=8), nullable=False, server_default="manual"))
    op.add_column("summaries", sa.Column("outgoing", sa.LargeBinary(), nullable=True))
    op.add_column("summaries", sa.Column("statement", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    for column in ("statement", "outgoing", "release_class"):
        op.drop_column("summaries", column)
    op.drop_table("release_decisions")
