"""The mirror of the trust repository, what is projected from it, and proposals of operators.

People come from the directory from now on: those of before are not kept, for
nobody has signed for them. The catalogue lists what the repository approves;
analyses of before stay unlisted, for the jobs that name them.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from coordinator.store.base import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _mirror()
    _people()
    _catalogue()
    _proposals()


def _mirror() -> None:
    op.create_table(
        "trust_metadata",
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("role", "version", name="pk_trust_metadata"),
    )
    op.create_index("ix_trust_metadata_sha256", "trust_metadata", ["sha256"])
    op.create_table(
        "trust_targets",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_trust_targets"),
    )
    versions = ("pinned_root", "root_version", "targets_version", "snapshot_version", "timestamp_version")
    op.create_table(
        "trust_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in versions),
        sa.Column("directory_version", sa.BigInteger(), nullable=False),
        sa.Column("directory_sha256", sa.String(64), nullable=False),
        sa.Column("in_force_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_trust_state"),
    )


def _people() -> None:
    op.drop_table("persons")
    op.create_table(
        "persons",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("organisation", sa.String(64), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("signing_key", sa.String(44), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_persons"),
    )


def _catalogue() -> None:
    connection = op.get_bind()
    columns = "name, version, rank, digest, manifest"
    before = connection.execute(sa.text(f"SELECT {columns} FROM analyses")).mappings().all()  # noqa: S608 - our own words
    op.drop_table("analyses")
    analyses = op.create_table(
        "analyses",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("rank", sa.String(16), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_analyses"),
    )
    listed = sa.text("listed")
    op.create_index(
        "uq_analyses_listed",
        "analyses",
        ["name", "version"],
        unique=True,
        sqlite_where=listed,
        postgresql_where=listed,
    )
    # One digest is one content, whatever names it was published under.
    kept = {row["digest"]: {**row, "listed": False} for row in before}
    if kept:
        connection.execute(sa.insert(analyses), list(kept.values()))


def _proposals() -> None:
    op.create_table(
        "proposals",
        sa.Column("proposal_id", sa.String(36), nullable=False),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("proposed_by", sa.String(64), nullable=False),
        sa.Column("proposed_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("closed_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("proposal_id", name="pk_proposals"),
    )
    is_open = sa.text("state = 'OPEN'")
    op.create_index(
        "uq_proposals_open", "proposals", ["digest"], unique=True, sqlite_where=is_open, postgresql_where=is_open
    )


def downgrade() -> None:
    raise NotImplementedError("people and catalogue of before are gone")
