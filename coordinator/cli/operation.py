"""``hansa-coordinator drain`` and ``status``: before maintenance, and at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.config import load_config
from coordinator.store.database import Database
from coordinator.store.job_models import JOBS, NODES
from coordinator.store.jobs import JobRepository
from hansa.runtime.clock import utc_now
from hansa.runtime.drain import DrainFile

_STATE_DIR = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("state_dir", type=_STATE_DIR)
@click.option("--off", is_flag=True, help="Take new jobs again.")
def drain(state_dir: Path, *, off: bool) -> None:
    """Take no new jobs in STATE_DIR; what is open goes on.

    Holds from now on, whether the coordinator runs or not, and until `--off`:
    a restart changes nothing. Whoever submits a job is told to come again later.
    """
    load_config(state_dir)
    DrainFile(state_dir).express(utc_now(), off=off)
    if off:
        click.echo("New jobs are taken again.")
    else:
        click.echo(f"No new jobs are taken. {_look(state_dir)['open_jobs']} open jobs go on.")


@click.command()
@click.argument("state_dir", type=_STATE_DIR)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", help="How to print (default: text).")
def status(state_dir: Path, output: str) -> None:
    """Show what is open in STATE_DIR, and whether new jobs are taken. The server may run."""
    found = _look(state_dir)
    if output == "json":
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):20} {'-' if value is None else value}")


def _look(state_dir: Path) -> dict[str, Any]:
    config, wish = load_config(state_dir), DrainFile(state_dir)
    database = Database.open(config.database_url(state_dir))
    try:
        counts = database.run_sync(_counts)
    finally:
        database.close()
    since = wish.since()
    return {"draining": wish.is_set(), "draining_since": since.isoformat() if since else None, **counts}


def _counts(session: Session) -> dict[str, int]:
    nodes = select(func.count()).select_from(NODES)
    return {
        "open_jobs": len(JobRepository(session).open_jobs()),
        "jobs": session.scalar(select(func.count()).select_from(JOBS)) or 0,
        "connected_nodes": session.scalar(nodes.where(NODES.c.connected)) or 0,
    }
