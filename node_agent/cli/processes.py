"""``hansa-node run`` and ``worker``: the node's two kinds of process."""

from __future__ import annotations

import click

from node_agent.cli.invocation import Invocation, state_options
from node_agent.config import load_settings


@click.command(short_help="Run the agent in the foreground.")
@state_options
@click.pass_obj
def run(invocation: Invocation) -> int:
    """Run the agent in the foreground, until it is told to stop (SIGTERM)."""
    state = invocation.open_state()
    from node_agent.bootstrap import serve

    return serve(state)


@click.command(short_help="Run a worker in the foreground.")
@click.option(
    "--pool", type=click.Choice(["runs", "rules", "all"]), default="all", show_default=True, help="What it works on."
)
@click.option("--slots", type=click.IntRange(1, 64), help="How many at once.  [default: slots of agent.toml]")
@state_options
@click.pass_obj
def worker(invocation: Invocation, pool: str, slots: int | None) -> int:
    """Run a worker in the foreground; it takes its work from the agent's broker."""
    state = invocation.open_state()
    from node_agent.execution.worker import run_worker

    return run_worker(state.path, pool, slots or load_settings(state).slots) or 0
