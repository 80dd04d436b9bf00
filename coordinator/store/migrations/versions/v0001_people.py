"""The federation, its people and nodes, and what may be asked.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.store.base import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _people()
    _nodes()
    _catalogue()
    _records()


def _people() -> None:
    op.create_table(
        "federation",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("store_uuid", sa.String(36), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_federation"),
    )
    op.create_table(
        "persons",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("public_key_pem", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(71), nullable=False),
        sa.Column("added_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_persons"),
    )


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("key_fingerprint", sa.String(71), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("store_uuid", sa.String(64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("event_cursor_seq", sa.BigInteger(), nullable=False),
        sa.Column("event_cursor_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_nodes"),
    )
    op.create_table(
        "credentials",
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("not_after", UtcDateTime(), nullable=False),
        sa.Column("key_fingerprint", sa.String(71), nullable=False),
        sa.Column("certificate_pem", sa.Text(), nullable=False),
        sa.Column("issued_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_credentials"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_credentials_node_nodes"),
    )
    op.create_index("ix_credentials_node", "credentials", ["node"])
    for state in ("PENDING", "ACTIVE"):
        only = sa.text(f"state = '{state}'")
        name = f"uq_credentials_{state.lower()}"
        op.create_index(name, "credentials", ["node"], unique=True, sqlite_where=only, postgresql_where=only)
    op.create_table(
        "invitations",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("redeemed_by", sa.String(71), nullable=True),
        sa.Column("inviter", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_invitations"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_invitations_node_nodes"),
        sa.UniqueConstraint("node", name="uq_invitations_node"),
    )


def _catalogue() -> None:
    op.create_table(
        "analyses",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("rank", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("published_by", sa.String(64), nullable=False),
        sa.Column("published_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_analyses"),
    )
    op.create_table(
        "datasets",
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("dataset_id", sa.String(64), nullable=False),
        sa.Column("build", sa.String(16), nullable=False),
        sa.Column("snapshot", sa.String(71), nullable=False),
        sa.PrimaryKeyConstraint("node", "dataset_id", name="pk_datasets"),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name="fk_datasets_node_nodes"),
    )


def _records() -> None:
    op.create_table(
        "audit",
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("index", name="pk_audit"),
    )
    op.create_table(
        "requests",
        sa.Column("caller", sa.String(80), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("method", sa.String(128), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "request_id", name="pk_requests"),
    )
    op.create_index("ix_requests_at", "requests", ["at"])
