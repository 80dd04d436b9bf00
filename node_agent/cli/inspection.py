"""``hansa-node status`` and ``doctor``: how the node stands, and what ails it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from node_agent.cli.invocation import Invocation, output_option, quiet_logs, state_options
from node_agent.cli.render import print_facts, print_json, print_table, shown


@click.command()
@state_options
@output_option
@click.pass_obj
def status(invocation: Invocation) -> None:
    """Show how the agent stands."""
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(invocation.open_state())
    found = agent.status()
    if invocation.json:
        print_json(found)
        return
    print_facts({name: shown(value) for name, value in _flat(found)})


def _flat(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the facts; those of a group, which are not counts, each on a line of its own as ``group.name``."""
    for name, value in found.items():
        if isinstance(value, Mapping) and not all(isinstance(one, int) for one in value.values()):
            yield from ((f"{name}.{inner}", one) for inner, one in value.items())
        else:
            yield name, value


@click.command(short_help="Check what the node needs; say what to mend.")
@state_options
@output_option
@click.pass_obj
def doctor(invocation: Invocation) -> int:
    """Check what the node needs; each fault comes with its remedy. Exit code 1 when there is one."""
    from node_agent.doctor import FAILED, examine

    quiet_logs()
    path = invocation.state_path()
    findings = examine(path)
    if invocation.json:
        print_json(
            {
                "checks": [
                    {"check": f.check, "outcome": f.outcome, "detail": f.detail, "remedy": f.remedy} for f in findings
                ]
            }
        )
    else:
        rows = [(f.check, f.outcome, f.detail, f.remedy) for f in findings]
        print_table(("check", "outcome", "detail", "remedy"), rows, empty="Nothing was checked.")
    return 1 if any(finding.outcome == FAILED for finding in findings) else 0
