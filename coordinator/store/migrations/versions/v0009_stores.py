"""The term that fences an older coordinator, and when a command was acknowledged.

Revision ID: 0009
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from coordinator.store.base import UtcDateTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("federation", sa.Column("term", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("commands", sa.Column("acked_at", UtcDateTime(), nullable=True))
    # From now on at the latest: what was acknowledged before is kept as if it had been just now.
    commands = sa.table("commands", sa.column("acked", sa.Boolean()), sa.column("acked_at", UtcDateTime()))
    op.execute(commands.update().where(commands.c.acked.is_(True)).values(acked_at=datetime.now(UTC)))


def downgrade() -> None:
    op.drop_column("commands", "acked_at")
    op.drop_column("federation", "term")
