"""``hansa-node airlock``: what wants to leave, and the decision on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, output_option, state_options
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
    said = ", ".join(f"{one['decision']} by {one['checker']}" for one in found["decisions"])
    print_facts(
        {
            **{name: shown(run.get(name)) for name in names},
            "digest": found["digest"],
            "class": found["release_class"],
            "decisions": shown(said),
        }
    )
    click.echo("\nChecks")
    checks = [[shown(check.get(name)) for name in ("rule", "outcome", "count")] for check in found["checks"]]
    print_table(("rule", "outcome", "count"), checks, empty="None.")
    click.echo("\nWhat would leave (a dash is a suppressed figure; --output json has every row)")
    columns, rows = summary_rows(found["summary"])
    print_table(columns, rows, empty="No figure: everything is suppressed.")


def _decision(name: str, help_: str) -> click.Command:
    @click.argument("run")
    @click.option("--person", required=True, help="Your name in the directory: an output checker of this node.")
    @click.option(
        "--key", "key_file", required=True, type=click.Path(path_type=Path), help="Your private key; it stays here."
    )
    @click.option("--reason", required=True, help="Why; signed and kept with the decision.")
    @state_options
    @output_option
    @click.pass_obj
    def decide(invocation: Invocation, *, run: str, person: str, key_file: Path, reason: str) -> None:
        if not reason.strip():
            raise click.BadParameter("must say something", param_hint="--reason")
        from node_agent.local_api.client import AgentClient

        agent = AgentClient(invocation.open_state())
        waiting = agent.airlock_run(agent.resolve_run(run))
        signed = signed_decision(waiting, name.upper(), person=person, key_file=key_file, reason=reason.strip())
        decided = agent.decide(waiting["run"]["run_id"], name, signed)
        if invocation.json:
            print_json({"run": decided})
            return
        print_facts({"run_id": decided["run_id"], "digest": waiting["digest"], "state": decided["state"]})

    return click.command(name, help=help_)(decide)


def signed_decision(waiting: dict[str, Any], decision: str, *, person: str, key_file: Path, reason: str) -> bytes:
    """Return a person's signed decision (DSSE JSON) on the summary in ``waiting``.

    Args:
        waiting: what the agent shows of the summary.
        decision: RELEASE or WITHHOLD.
        person: the output checker.
        key_file: their private key.
        reason: printable ASCII, for the node's own log.

    Raises:
        HansaError: ``KEY_INVALID``, ``DECISION_INVALID``.
    """
    from pydantic import ValidationError

    from hansa.contract import envelope
    from hansa.contract.decision import ReleaseDecision
    from hansa.runtime.clock import utc_now
    from hansa.sdk.keys import load_private_key

    key = load_private_key(key_file)
    try:
        made = ReleaseDecision.model_validate(
            {
                "node": waiting["node"],
                "run_id": waiting["run"]["run_id"],
                "summary_digest": waiting["digest"],
                "decision": decision,
                "reason": reason,
                "checker": person,
                "at": utc_now(),
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HansaError(Reason.DECISION_INVALID, f"{field}: {first['msg']}", field=field) from error
    return envelope.to_json(envelope.sign(envelope.DECISION_TYPE, made.to_bytes(), key_id=person, key=key))


airlock.add_command(_decision("release", "Sign that the summary of RUN may leave the node."))
airlock.add_command(_decision("withhold", "Sign that the summary of RUN stays here, for good."))
