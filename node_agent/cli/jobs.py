"""``hansa-node job``: the runs at this node, with what only its operator may see."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, login_name, output_option, person_options, state_options
from node_agent.cli.render import plain, print_facts, print_json, print_runs, shown
from node_agent.config import StateFolder

_TAIL_BYTES: Final = 64 << 10
_TAIL_LINES: Final = 200


@click.group()
@state_options
def job() -> None:
    """See the runs at this node; approve and decline the jobs that wait for it."""


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

    Of a job that waits for an approval: all that a data holder has to know
    before signing. The log never leaves the node; it may hold whatever the
    analysis printed.
    """
    from node_agent.local_api.client import AgentClient

    state = invocation.open_state()
    agent = AgentClient(state)
    found = agent.run(agent.resolve_run(run))
    if found["state"] == "AWAITING_APPROVAL":
        found.update(_asked(agent.approval_request(found["run_id"])))
    tail = log_tail(state, Path(found["log_path"])) if with_log else None
    if invocation.json:
        print_json(found if tail is None else {**found, "log": tail})
    elif tail is not None:
        click.echo(plain(tail, keep="\n\t"))
    else:
        print_facts({name: shown(value) for name, value in found.items()})


@job.command("approve")
@click.argument("run")
@person_options
@state_options
@output_option
@click.pass_obj
def approve(invocation: Invocation, run: str, person: str, key: Path) -> None:
    """Approve the job of RUN, as a data holder of this node: sign exactly this job with your key.

    The agent holds the signature against the directory and the node's policy,
    and judges the job again before it is queued.
    """
    from node_agent.cli.signing import job_approval
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    run_id = agent.resolve_run(run)
    _ended(invocation, agent.approve(run_id, job_approval(agent.approval_request(run_id), person, key)))


@job.command("decline")
@click.argument("run")
@click.option("--person", help="Who decides; the log says so.  [default: the login name]")
@click.option("--reason", required=True, help="Why; kept at this node.")
@state_options
@output_option
@click.pass_obj
def decline(invocation: Invocation, run: str, person: str | None, reason: str) -> None:
    """Decline the job of RUN, which waits for an approval. Saying no needs no key."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    _ended(invocation, agent.decline(agent.resolve_run(run), reason=reason.strip(), by=person or login_name()))


def _asked(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a data holder is asked beyond what every run shows; digests as they will be signed."""
    names = ("project", "purpose", "nodes", "release_class", "not_after", "job_digest")
    return {**{name: request[name] for name in names}, "analysis_digest": request["analysis"]["digest"]}


def _ended(invocation: Invocation, found: Mapping[str, Any]) -> None:
    if invocation.json:
        print_json(found)
    else:
        print_facts({name: shown(found.get(name)) for name in ("run_id", "state", "reason")})


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
