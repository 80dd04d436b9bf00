"""``hansa-node airlock``: what wants to leave, and the decision on it."""

from __future__ import annotations

from typing import Any

import click

from node_agent.cli.invocation import Invocation, login_name, output_option, state_options
from node_agent.cli.render import print_facts, print_json, print_runs, print_table, shown, summary_rows


@click.group()
@state_options
def airlock() -> None:
    """See the summaries that wait, and release or withhold them."""


@airlock.command("list")
@state_options
@output_option
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the runs whose summaries wait for a decision."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    found = agent.airlock()
    if invocation.json:
        print_json({"runs": found})
        return
    print_runs(found, empty="Nothing waits in the airlock.")


@airlock.command("show")
@click.argument("run")
@state_options
@output_option
@click.pass_obj
def show(invocation: Invocation, run: str) -> None:
    """Show what would leave with RUN, and what the checks say of it."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    found = agent.airlock_run(agent.resolve_run(run))
    if invocation.json:
        print_json(found)
        return
    _print_waiting(found)


def _print_waiting(found: dict[str, Any]) -> None:
    run = found["run"]
    names = ("run_id", "job_id", "submitter", "analysis", "dataset", "state")
    print_facts({**{name: shown(run.get(name)) for name in names}, "digest": found["digest"]})
    click.echo("\nChecks")
    checks = [[shown(check.get(name)) for name in ("rule", "outcome", "count")] for check in found["checks"]]
    print_table(("rule", "outcome", "count"), checks, empty="None.")
    click.echo("\nWhat would leave (a dash is a suppressed figure; --output json has every row)")
    columns, rows = summary_rows(found["summary"])
    print_table(columns, rows, empty="No figure: everything is suppressed.")


def _decision(name: str, help_: str) -> click.Command:
    @click.argument("run")
    @click.option("--reason", required=True, help="Why; kept with the decision.")
    @state_options
    @output_option
    @click.pass_obj
    def decide(invocation: Invocation, run: str, reason: str) -> None:
        if not reason.strip():
            raise click.BadParameter("must say something", param_hint="--reason")
        from node_agent.local_api.client import AgentClient

        agent = AgentClient(invocation.open_state())
        call = agent.release if name == "release" else agent.withhold
        decided = call(agent.resolve_run(run), reason=reason.strip(), by=login_name())
        if invocation.json:
            print_json({"run": decided})
            return
        print_facts({"run_id": decided["run_id"], "state": decided["state"]})

    return click.command(name, help=help_)(decide)


airlock.add_command(_decision("release", "Let the summary of RUN leave the node."))
airlock.add_command(_decision("withhold", "Keep the summary of RUN here, for good."))
