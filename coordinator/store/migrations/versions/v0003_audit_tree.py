"""The Merkle tree over the audit table; what is in it already becomes its first leaves.

Revision ID: 0003
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from coordinator.store.base import UtcDateTime
from hansa.contract.digests import canonical, keyed_hash
from hansa.contract.merkle import Frontier, leaf_hash

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
    _grow_over_what_is_there()


def _grow_over_what_is_there() -> None:
    # Tables as they are at this version, whatever the models have become since.
    acts = sa.table(
        "audit",
        sa.column("index", sa.BigInteger()),
        sa.column("at", UtcDateTime()),
        sa.column("actor", sa.String()),
        sa.column("action", sa.String()),
        sa.column("subject", sa.Text()),
    )
    blob = sa.LargeBinary()
    leaves = sa.table(
        "audit_leaves",
        *(
            sa.column(n, t)
            for n, t in (("index", sa.BigInteger()), ("salt", blob), ("body", blob), ("leaf_hash", blob))
        ),
    )
    nodes = sa.table(
        "audit_nodes",
        *(sa.column(n, t) for n, t in (("level", sa.Integer()), ("index", sa.BigInteger()), ("hash", blob))),
    )
    connection, tree = op.get_bind(), Frontier()
    for index, at, actor, action, subject in connection.execute(sa.select(acts).order_by(acts.c.index)).all():
        salt = secrets.token_bytes(32)
        body = _body(
            at, action, {"actor": keyed_hash(salt, "actor", actor), "subject": keyed_hash(salt, "subject", subject)}
        )
        leaf, *above = tree.append(leaf_hash(body))
        connection.execute(leaves.insert().values(index=index, salt=salt, body=body, leaf_hash=leaf.hash))
        for node in above:
            connection.execute(nodes.insert().values(level=node.level, index=node.index, hash=node.hash))


def _body(at: datetime, action: str, hashes: dict[str, str]) -> bytes:
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    return canonical({"v": 1, "at": moment, "action": action, **hashes})


def downgrade() -> None:
    op.drop_table("audit_nodes")
    op.drop_table("audit_leaves")
