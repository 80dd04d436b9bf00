"""``hansa-node approval``: the standing approvals of this node's data holders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, login_name, output_option, person_options, state_options
from node_agent.cli.render import print_facts, print_json, print_table


@click.group(short_help="See, give and revoke approvals.")
@state_options
def approval() -> None:
    """See, give and revoke the approvals under which jobs run at this node.

    A job runs only with a data holder's yes: for this job (`hansa-node job
    approve`), or a standing one that covers it.
    """


@approval.command("list")
@state_options
@output_option
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the approvals, the newest first; revoked ones too."""
    from node_agent.local_api.client import AgentClient

    found = AgentClient(invocation.open_state()).approvals()
    if invocation.json:
        print_json({"approvals": found})
        return
    columns = ("approval", "of", "approver", "until", "revoked")
    rows = [
        (one["id"], _of(one["says"]), one["approver"], one["says"].get("not_after", "-"), one["revoked_at"] or "-")
        for one in found
    ]
    print_table(columns, rows, empty="No approvals.")


@approval.command("add")
@person_options
@click.option("--project", required=True, help="The project whose jobs are approved.")
@click.option("--analysis", required=True, metavar="NAME@VERSION", help="The analysis, as the repository approves it.")
@click.option("--dataset", "datasets", required=True, multiple=True, help="A dataset of this node; may be repeated.")
@click.option(
    "--until", required=True, metavar="DAY", help="The last day, in UTC (2026-12-31), or a time with its zone."
)
@click.option("--max-variants", type=click.IntRange(min=1), help="The most variants one job may ask for.")
@click.option("--max-region-bases", type=click.IntRange(min=1), help="The longest region one job may ask for.")
@state_options
@output_option
@click.pass_obj
def add(
    invocation: Invocation,
    *,
    person: str,
    key: Path,
    project: str,
    analysis: str,
    datasets: tuple[str, ...],
    until: str,
    max_variants: int | None,
    max_region_bases: int | None,
) -> None:
    """Approve every job of a project with one analysis, on some datasets, for a time, as a data holder of this node.

    What is signed names the analysis by the digest that the trust repository
    approves now; another version needs another approval.
    """
    from hansa.runtime.clock import utc_now
    from node_agent.cli.signing import moment, standing_approval
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    status = agent.status()
    limits = {"max_variants": max_variants, "max_region_bases": max_region_bases}
    values = {
        "federation": status["federation"],
        "node": status["node"],
        "project": project,
        "analysis": _reference(analysis, status.get("trust", {}).get("analyses", {})),
        "datasets": datasets,
        "limits": {name: value for name, value in limits.items() if value is not None},
        "not_before": utc_now(),
        "not_after": moment(until),
    }
    _print(invocation, agent.add_approval(standing_approval(values, person, key)))


@approval.command("revoke")
@click.argument("approval_id", metavar="APPROVAL")
@click.option("--person", help="Who decides; the log says so.  [default: the login name]")
@state_options
@output_option
@click.pass_obj
def revoke(invocation: Invocation, approval_id: str, person: str | None) -> None:
    """Let APPROVAL count no more, at once; what runs under it is stopped. Saying no needs no key."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    _print(invocation, agent.revoke_approval(_one(agent.approvals(), approval_id), by=person or login_name()))


def _reference(key: str, approved: Mapping[str, str]) -> dict[str, str]:
    """Return the analysis with the digest that the agent's verified repository has of it."""
    if key not in approved:
        known = ", ".join(sorted(approved)) or "none"
        raise HansaError(
            Reason.ANALYSIS_UNKNOWN,
            f"The trust repository approves no {key[:100]!a}; it approves: {known}.",
            field="analysis",
        )
    name, _, version = key.partition("@")
    return {"name": name, "version": version, "digest": approved[key]}


def _one(found: list[dict[str, Any]], text: str) -> str:
    """Return the id that ``text`` is, or begins alone."""
    matching = [str(one["id"]) for one in found if text and str(one["id"]).startswith(text)]
    if len(matching) != 1:
        raise HansaError(Reason.APPROVAL_UNKNOWN, field="approval")
    return matching[0]


def _of(says: Mapping[str, Any]) -> str:
    if says.get("kind") == "job":
        return f"job {says['job_id']}"
    analysis = says["analysis"]
    return f"{says['project']}, {analysis['name']}@{analysis['version']}, {', '.join(says['datasets'])}"


def _print(invocation: Invocation, found: Mapping[str, Any]) -> None:
    if invocation.json:
        print_json(found)
        return
    facts = {
        "approval": found["id"],
        "of": _of(found["says"]),
        "approver": found["approver"],
        "digest": found["digest"],
    }
    print_facts({**facts, "revoked": found["revoked_at"] or "no"})
