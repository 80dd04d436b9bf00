"""``hansa admin``: the federation operator's nodes, what waits for a second operator, and the audit list."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

import click

from hansa.cli import documents
from hansa.cli.arguments import Duration
from hansa.cli.catalogue import print_nodes
from hansa.cli.invocation import Invocation, remote
from hansa.cli.output import print_fields, print_json, print_table
from hansa.cli.session import run
from hansa.cli.text import safe
from hansa.contract.digests import DIGEST
from hansa.contract.errors import HansaError, Reason
from hansa.sdk.client import Client
from hansa.v1 import types_pb2

_MOST_INVITED = timedelta(days=7)


@click.group()
def admin() -> None:
    """For federation operators: people, nodes, proposals, audit."""


@admin.group()
def person() -> None:
    """Who may ask, and who operates."""


@person.command("list")
@remote
@click.pass_obj
def list_persons(invocation: Invocation, output: str) -> None:
    """List the people of the directory in force."""
    found = run(invocation, lambda client: client.admin.persons())
    if output == "json":
        print_json({"persons": [documents.person(one) for one in found]})
        return
    rows = [(one.name, one.organisation, ", ".join(one.roles), one.key_fingerprint) for one in found]
    print_table(("PERSON", "ORGANISATION", "ROLES", "KEY"), rows, nothing="Nobody is known.")


@admin.group()
def node() -> None:
    """Which nodes belong to the federation."""


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--valid", type=Duration(Reason.MALFORMED, "valid"), default="30m", show_default=True, help="At most 7d.")
@click.option("--again", is_flag=True, help="NODE is a member and needs a new certificate; those it has are revoked.")
@remote
@click.pass_obj
def invite(invocation: Invocation, *, name: str, valid: timedelta, again: bool, output: str) -> None:
    """Print the one-time token with which NODE enrols."""
    if valid > _MOST_INVITED:
        raise HansaError(Reason.MALFORMED, "An invitation is valid for at most 7 days.", field="valid")
    invited = run(invocation, lambda client: client.admin.invite_node(name, valid=valid, again=again))
    expires = f"{invited.expires_at:%Y-%m-%dT%H:%M:%S}Z"
    if output == "json":
        print_json({"node": name, "token": invited.token, "expires_at": expires})
        return
    # The token alone on stdout, so that a script can take it.
    click.echo(safe(invited.token))
    click.echo(
        f"Valid until {expires}, for one key. At the node: hansa-node enrol {'--again ' if again else ''}TOKEN",
        err=True,
    )


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--fingerprint", metavar="sha256:…", help="What the node's operator read out; compared here.")
@click.option("--yes", is_flag=True, help="Do not ask; the fingerprint was compared.")
@remote
@click.pass_obj
def confirm(invocation: Invocation, name: str, fingerprint: str | None, yes: bool, output: str) -> None:
    """Admit NODE, whose key's fingerprint you have compared with its operator's."""
    expected = None if fingerprint is None else _fingerprint(fingerprint)
    if expected is None:
        expected = run(invocation, lambda client: _enrolled_fingerprint(client, name))
        _compare(name, expected, yes=yes)
    confirmed = expected
    _change(invocation, output, lambda client: client.admin.confirm_node(name, key_fingerprint=confirmed))


def _fingerprint(text: str) -> str:
    if not DIGEST.fullmatch(text):
        raise click.BadParameter("a fingerprint is sha256: and 64 hexadecimal digits", param_hint="--fingerprint")
    return text


async def _enrolled_fingerprint(client: Client, name: str) -> str:
    for one in await client.catalogue.nodes():
        if one.node == name and not one.key_fingerprint:
            raise HansaError(Reason.NODE_STATE_CONFLICT, f"{safe(name)} has not enrolled yet.", field="node")
        if one.node == name:
            return one.key_fingerprint
    raise HansaError(Reason.NODE_UNKNOWN, field="node")


def _compare(name: str, fingerprint: str, *, yes: bool) -> None:
    click.echo(f"{safe(name)} enrolled with the key {safe(fingerprint)}", err=True)
    if yes:
        return
    click.echo("Is it what `hansa-node enrol` printed at the node? Type yes: ", nl=False, err=True)
    if sys.stdin.readline().strip() != "yes":
        raise HansaError(
            Reason.FINGERPRINT_MISMATCH, f"{safe(name)} was not confirmed; pass --fingerprint or --yes.", field="node"
        )


def _change(invocation: Invocation, output: str, change: Callable[[Client], Awaitable[types_pb2.Node]]) -> None:
    changed = run(invocation, change)
    if output == "json":
        print_json(documents.node(changed))
    else:
        print_fields({"node": changed.node, "state": documents.node_state(changed)})


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--reason", default="", help="For the audit list.")
@remote
@click.pass_obj
def suspend(invocation: Invocation, name: str, reason: str, output: str) -> None:
    """Refuse NODE's calls until it is resumed."""
    _change(invocation, output, lambda client: client.admin.suspend_node(name, reason=reason))


@node.command()
@click.argument("name", metavar="NODE")
@remote
@click.pass_obj
def resume(invocation: Invocation, name: str, output: str) -> None:
    """Take NODE's suspension back."""
    _change(invocation, output, lambda client: client.admin.resume_node(name))


@node.command()
@click.argument("name", metavar="NODE")
@remote
@click.pass_obj
def reconcile(invocation: Invocation, name: str, output: str) -> None:
    """Admit quarantined NODE, whose store was restored from a backup."""
    _change(invocation, output, lambda client: client.admin.reconcile_node(name))


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--reason", default="", help="For the audit list.")
@remote
@click.pass_obj
def revoke(invocation: Invocation, name: str, reason: str, output: str) -> None:
    """End NODE's membership for good."""
    _change(invocation, output, lambda client: client.admin.revoke_node(name, reason=reason))


@node.command("list")
@remote
@click.pass_obj
def list_nodes(invocation: Invocation, output: str) -> None:
    """List the nodes, their states and their keys."""
    found = run(invocation, lambda client: client.catalogue.nodes())
    if output == "json":
        print_nodes(found, output)
        return
    rows = [(one.node, documents.node_state(one), one.key_fingerprint, one.reason) for one in found]
    print_table(("NODE", "STATE", "KEY", "REASON"), rows, nothing="There is no node.")


@admin.group()
def proposal() -> None:
    """What waits for a second operator."""


@proposal.command("list")
@remote
@click.pass_obj
def list_proposals(invocation: Invocation, output: str) -> None:
    """List what one operator has asked for and a second one has to ask for too."""
    found = run(invocation, lambda client: client.admin.proposals())
    if output == "json":
        print_json({"proposals": [documents.proposal(one) for one in found]})
        return
    rows = [
        (one.proposal_id, one.method, one.subject, one.proposed_by, documents.shown_time(one.expires_at))
        for one in found
    ]
    print_table(("PROPOSAL", "WHAT", "TO", "BY", "UNTIL"), rows, nothing="Nothing waits.")


@proposal.command()
@click.argument("proposal_id", metavar="PROPOSAL")
@remote
@click.pass_obj
def withdraw(invocation: Invocation, proposal_id: str, output: str) -> None:
    """Take PROPOSAL back, so that no second operator can carry it out."""
    withdrawn = run(invocation, lambda client: client.admin.withdraw(proposal_id))
    if output == "json":
        print_json(documents.proposal(withdrawn))
    else:
        print_fields({"withdrawn": withdrawn.proposal_id, "what": withdrawn.method, "to": withdrawn.subject})


@admin.group()
def audit() -> None:
    """What operators did."""


@audit.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@remote
@click.pass_obj
def list_audit(invocation: Invocation, limit: int, output: str) -> None:
    """List what operators did, the newest first."""
    found = run(invocation, lambda client: client.admin.audit(limit=limit))
    if output == "json":
        print_json({"entries": [documents.audit_entry(one) for one in found]})
        return
    rows = [(one.index, documents.shown_time(one.at), one.actor, one.action, one.subject) for one in found]
    print_table(("#", "AT", "WHO", "DID", "TO"), rows, nothing="Nothing was done yet.")
