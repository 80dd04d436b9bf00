"""what a node keeps of its coordinator's generation, where its outbox begins, and whether it is reconciled"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COLUMNS = {
    "coordinator_generation": sa.Integer(),
    "event_acked": sa.Integer(),
    "event_base_seq": sa.Integer(),
    "reconciled_generation": sa.Integer(),
}


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        default = "1" if name.endswith("generation") else "0"
        op.add_column("store", sa.Column(name, kind, nullable=False, server_default=default))
    base = sa.Column("event_base_hash", sa.LargeBinary(), nullable=False, server_default=sa.text(f"x'{'00' * 32}'"))
    op.add_column("store", base)


def downgrade() -> None:
    op.drop_column("store", "event_base_hash")
    for name in reversed(_COLUMNS):
        op.drop_column("store", name)
