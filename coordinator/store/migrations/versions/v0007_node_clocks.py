"""How far each node's clock is from ours, as its heartbeats say.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("clock_ahead_seconds", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("nodes", "clock_ahead_seconds")
