"""The Merkle tree over the audit table; what is in it already becomes its first leaves.

Revision ID: 0003
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

from coordinator.store.audit import grow
from coordinator.store.people_models import AuditRow

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_leaves",
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("index", name="pk_audit_leaves"),
    )
    op.create_table(
        "audit_nodes",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name="pk_audit_nodes"),
    )
    with Session(op.get_bind(), join_transaction_mode="create_savepoint") as session:
        for row in session.scalars(sa.select(AuditRow).order_by(AuditRow.index)).all():
            grow(session, row, secrets.token_bytes(32))
        session.commit()


def downgrade() -> None:
    op.drop_table("audit_nodes")
    op.drop_table("audit_leaves")
