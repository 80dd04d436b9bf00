"""``hansa-node job``: the runs at this node, with what only its operator may see."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, output_option, state_options
from node_agent.cli.render import plain, print_facts, print_json, print_runs, shown
from node_agent.config import StateFolder

_TAIL_BYTES: Final = 64 << 10
_TAIL_LINES: Final = 200


@click.group()
@state_options
def job() -> None:
    """See the runs at this node."""


@job.command("list")
@state_options
@output_option
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the runs, the newest first."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    found = agent.runs()
    if invocation.json:
        print_json({"runs": found})
        return
    print_runs(found, empty="No runs.")


@job.command("show")
@click.argument("run")
@click.option("--log", "with_log", is_flag=True, help="Print the end of the run's log instead.")
@state_options
@output_option
@click.pass_obj
def show(invocation: Invocation, run: str, with_log: bool) -> None:
    """Show RUN: its state and reason, its incident, and where its log is.

    The log never leaves the node; it may hold whatever the analysis printed.
    """
    from node_agent.local_api.client import AgentClient

    state = invocation.open_state()
    agent = AgentClient(state)
    found = agent.run(agent.resolve_run(run))
    tail = log_tail(state, Path(found["log_path"])) if with_log else None
    if invocation.json:
        print_json(found if tail is None else {**found, "log": tail})
    elif tail is not None:
        click.echo(plain(tail, keep="\n\t"))
    else:
        print_facts({name: shown(value) for name, value in found.items()})


def log_tail(state: StateFolder, path: Path) -> str:
    """Return the last lines of a run's log.

    Raises:
        HansaError: ``FILE_INVALID``; there is no log, or it is no plain file
            of the state folder (a run may have put a link in its place).
    """
    if not path.resolve().is_relative_to(state.path.resolve()):
        raise HansaError(Reason.FILE_INVALID, "The run's log is not within the state folder.", field="log")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HansaError(Reason.FILE_INVALID, "This run has no log.", field="log", log=str(error)) from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise HansaError(Reason.FILE_INVALID, "The run's log is not a plain file.", field="log")
        file.seek(max(0, found.st_size - _TAIL_BYTES))
        text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
