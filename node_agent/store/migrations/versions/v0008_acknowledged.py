"""when an event was acknowledged, as far as the node has noted it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from node_agent.store.models import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("acked_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("events", "acked_at")
