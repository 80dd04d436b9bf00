"""The project of each job, and an index that counts the open ones.

Revision ID: 0010
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_JOBS = sa.table(
    "jobs",
    sa.column("job_id", sa.String),
    sa.column("payload", sa.LargeBinary),
    sa.column("project", sa.String),
    sa.column("ended_at", sa.DateTime),
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("project", sa.String(64), nullable=True))
    connection = op.get_bind()
    # Only open jobs are counted. They were verified when they came: they name their project.
    open_jobs = sa.select(_JOBS.c.job_id, _JOBS.c.payload).where(_JOBS.c.ended_at.is_(None))
    for job_id, payload in connection.execute(open_jobs).all():
        project = json.loads(payload)["project"]
        connection.execute(sa.update(_JOBS).where(_JOBS.c.job_id == job_id).values(project=project))
    op.create_index("ix_jobs_state_submitter_project", "jobs", ["state", "submitter", "project"])


def downgrade() -> None:
    op.drop_index("ix_jobs_state_submitter_project", "jobs")
    op.drop_column("jobs", "project")
