"""``hansa-node audit``: what this node decided, and whether the record is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, login_name, output_option, state_options
from node_agent.cli.render import print_facts, print_json, print_table, shown
from node_agent.local_api.client import AgentClient

FORMAT: Final = "hansa-audit-v1"
_PAGE: Final = 1000


@click.group()
@state_options
def audit() -> None:
    """Read, verify and export the record of what the node decided."""


@audit.command("show")
@click.option("--limit", type=click.IntRange(1, _PAGE), default=50, show_default=True, help="How many entries.")
@state_options
@output_option
@click.pass_obj
def show(invocation: Invocation, limit: int) -> None:
    """Show the newest entries, the oldest of them first."""
    found = AgentClient(invocation.open_state()).audit(limit=limit)
    if invocation.json:
        print_json(found)
        return
    rows = [
        (entry["index"], shown(entry["at"])[:19], shown(entry["action"]), _words(entry["facts"]), _names(entry))
        for entry in found["entries"]
    ]
    print_table(("index", "at (UTC)", "action", "facts", "who and why"), rows, empty="Nothing was decided yet.")
    print_facts({"size": found["size"], "root": found["root"]})


@audit.command("verify")
@click.option("--size", type=click.IntRange(0), help="A size of the log that you noted, with --root.")
@click.option("--root", help="The root that the log had at that size.")
@state_options
@output_option
@click.pass_obj
def verify(invocation: Invocation, size: int | None, root: str | None) -> int:
    """Recompute the whole log; exit code 1, and the first wrong entry, if it was changed.

    A log that was rewritten as a whole, or cut short, only shows against a
    size and a root that were noted earlier and kept elsewhere.
    """
    if (size is None) != (root is None):
        raise click.UsageError("Give --size and --root together.")
    found = AgentClient(invocation.open_state()).verify_audit(size=size, root=root or "")
    fault = found["fault"]
    if invocation.json:
        print_json(found)
    else:
        wrong = {} if fault is None else {"first wrong": fault["index"], "fault": fault["fault"]}
        print_facts({"verdict": "sound" if fault is None else "BROKEN", **wrong, **_checkpoint(found)})
    return 0 if fault is None else 1


@audit.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@state_options
@output_option
@click.pass_obj
def export(invocation: Invocation, file: Path) -> None:
    """Write the log to FILE as lines of JSON: first its size and root, then each entry's bytes.

    Names and reasons stay here: the entries hold keyed hashes of them.
    """
    agent = AgentClient(invocation.open_state())
    checkpoint = _checkpoint(agent.audit(limit=0))
    # Never over another file: an earlier export is what a later one is held against.
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
        out.write(json.dumps({"format": FORMAT, **checkpoint}) + "\n")
        for entry in _entries(agent, int(checkpoint["size"])):
            out.write(json.dumps({name: entry[name] for name in ("index", "body", "leaf_hash")}) + "\n")
    if invocation.json:
        print_json({"file": str(file), **checkpoint})
        return
    print_facts({"file": file, **checkpoint})


@audit.command("prove")
@click.argument("index", type=click.IntRange(0))
@state_options
@output_option
@click.pass_obj
def prove(invocation: Invocation, index: int) -> None:
    """Print entry INDEX with the proof that it is under this log's signed checkpoint."""
    found = AgentClient(invocation.open_state()).prove_audit(index)
    if invocation.json:
        print_json(found)
        return
    print_facts({"index": found["index"], "size": found["size"], "body": found["body"]})
    for one in found["hashes"]:
        click.echo(one)
    click.echo(found["checkpoint"], nl=False)


@audit.command("checkpoint")
@click.option("--cosigned", is_flag=True, help="The newest one that the coordinator has cosigned.")
@state_options
@output_option
@click.pass_obj
def checkpoint(invocation: Invocation, cosigned: bool) -> int:
    """Print where the log stands, as a signed note to be kept elsewhere."""
    found = AgentClient(invocation.open_state()).audit_checkpoint()
    if invocation.json:
        print_json(found)
        return 0
    note = found["cosigned" if cosigned else "checkpoint"]
    if not note:
        click.echo("The coordinator has cosigned no checkpoint yet.", err=True)
        return 1
    click.echo(note, nl=False)
    return 0


@audit.command("erase")
@click.option("--person", default="", help="Erase this person's name, and every reason that names them.")
@click.option("--index", type=click.IntRange(0), help="Erase the names and the reason of one entry.")
@state_options
@output_option
@click.pass_obj
def erase(invocation: Invocation, person: str, index: int | None) -> None:
    """Erase what entries say of people; the log stays whole, and says that something was erased."""
    if bool(person) == (index is not None):
        raise click.UsageError("Give --person or --index.")
    found = AgentClient(invocation.open_state()).erase_audit(index=index, person=person, by=login_name())
    if invocation.json:
        print_json(found)
        return
    print_facts({"entries erased": found["erased"]})


@audit.command("accept-coordinator-log")
@click.option("--reason", required=True, help="Why the log may be another one; for this node's log.")
@state_options
@output_option
@click.pass_obj
def accept_coordinator_log(invocation: Invocation, reason: str) -> None:
    """End the alarm that the coordinator's log has forked, and go on with the log that it shows now."""
    found = AgentClient(invocation.open_state()).accept_coordinator_log(reason=reason, by=login_name())
    if invocation.json:
        print_json(found)
        return
    print_facts({"coordinator's log": f"{found['coordinator_log']} entries, cosigned from here on"})


def _entries(agent: AgentClient, size: int) -> Iterator[dict[str, Any]]:
    after = -1
    while after + 1 < size:
        page = agent.audit(after=after, limit=min(_PAGE, size - after - 1))["entries"]
        if not page:
            raise HansaError(Reason.INTERNAL, f"Entry {after + 1} is missing; see `hansa-node audit verify`.")
        yield from page
        after = int(page[-1]["index"])


def _checkpoint(found: dict[str, Any]) -> dict[str, Any]:
    return {"size": found["size"], "root": found["root"]}


def _words(facts: dict[str, Any]) -> str:
    return " ".join(f"{name}={shown(value)}" for name, value in facts.items())


def _names(entry: dict[str, Any]) -> str:
    named = entry["subjects"].items()
    return "; ".join(f"{name}: {'(erased)' if text is None else text}" for name, text in named) or "-"
