"""the token that a run is claimed with, the project that it is for, and indexes for the scheduler"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_runs = sa.table("runs", sa.column("run_id"), sa.column("state"), sa.column("payload"), sa.column("project"))


def upgrade() -> None:
    op.add_column("runs", sa.Column("claim", sa.String(length=32), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("project", sa.String(length=64), nullable=False, server_default=""))
    op.create_index("runs_by_deadline", "runs", ["state", "not_after"])
    op.create_index("runs_by_project", "runs", ["state", "project", "created_at", "run_id"])
    op.create_index("runs_by_turn", "runs", ["project", "enqueued_at"])
    connection = op.get_bind()
    # Only who has yet to start is chosen by project.
    waiting = sa.select(_runs.c.run_id, _runs.c.payload).where(
        _runs.c.state.in_(("ACCEPTED", "AWAITING_APPROVAL", "QUEUED", "STAGING", "RUNNING"))
    )
    for run_id, payload in connection.execute(waiting).all():
        project = json.loads(payload)["project"]
        connection.execute(sa.update(_runs).where(_runs.c.run_id == run_id).values(project=project))


def downgrade() -> None:
    op.drop_index("runs_by_turn", "runs")
    op.drop_index("runs_by_project", "runs")
    op.drop_index("runs_by_deadline", "runs")
    op.drop_column("runs", "project")
    op.drop_column("runs", "claim")
