"""``hansa-node init`` and ``enrol``: from nothing to a member of a federation."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, output_option, quiet_logs, state_options
from node_agent.cli.render import print_facts, print_json
from node_agent.config import LocalSettings, StateFolder, config_text, create_state_folder
from node_agent.durable import write_durably


@click.command(short_help="Make the node's state folder.")
@click.option("--slots", type=click.IntRange(1, 64), help="How many runs are worked on at once.  [default: 2]")
@click.option("--broker-url", metavar="URL", help="A broker of the node's own; without it the agent runs one.")
@state_options
@output_option
@click.pass_obj
def init(invocation: Invocation, slots: int | None, broker_url: str | None) -> None:
    """Make the node's state folder, with a policy that admits nothing.

    What is there already stays as it is.
    """
    state = create_state_folder(invocation.state_path())
    given = {name: value for name, value in (("slots", slots), ("broker_url", broker_url)) if value is not None}
    _write_settings(state, LocalSettings(**given), wanted=bool(given))  # type: ignore[arg-type]  # checked by the class
    if not state.policy_file.exists():
        from node_agent.policy.file import store_policy
        from node_agent.policy.policy import Policy

        store_policy(state.policy_file, Policy())
    if invocation.json:
        print_json({"state": str(state.path), "policy": str(state.policy_file)})
        return
    click.echo(f"State folder: {state.path}")
    click.echo("Its policy admits nothing yet: see `hansa-node policy allow --help`.")
    click.echo(f"Next: hansa-node --state {state.path} enrol TOKEN   (the federation operator gives you the token)")


def _write_settings(state: StateFolder, settings: LocalSettings, *, wanted: bool) -> None:
    if not state.config_file.exists():
        write_durably(state.config_file, config_text(settings).encode())
    elif wanted:
        raise HansaError(
            Reason.CONFIG_INVALID, f"{state.config_file} is there already; change the settings in it.", field="state"
        )


@click.command(short_help="Join a federation with an invitation's TOKEN.")
@click.argument("invitation", metavar="TOKEN")
@click.option("--again", is_flag=True, help="The node is enrolled, and its certificate has expired or is refused.")
@state_options
@output_option
@click.pass_obj
def enrol(invocation: Invocation, invitation: str, *, again: bool) -> None:
    """Join a federation with the one-time TOKEN of an invitation.

    The node's key is made here and never leaves. TOKEN may be `-`: then it is
    read from standard input, where no list of processes shows it. After a lost
    answer the same command may be given again. With --again a node gets a new
    certificate and keeps all else: its store, its runs, its keys. Its agent may
    go on running.
    """
    state = invocation.open_state()
    # grpc is imported for this command alone.
    from node_agent.keys.enrolment import enrol as enrol_node
    from node_agent.keys.enrolment import enrol_again

    quiet_logs()
    token = sys.stdin.readline() if invitation == "-" else invitation
    outcome = enrol_again(token, state) if again else enrol_node(token, state)
    if invocation.json:
        print_json(
            {
                "node": outcome.node,
                "federation": outcome.federation,
                "key_fingerprint": outcome.fingerprint,
                "node_endpoint": outcome.node_endpoint,
            }
        )
        return
    print_facts({"node": outcome.node, "federation": outcome.federation, "key fingerprint": outcome.fingerprint})
    click.echo()
    _print_next(outcome.node, outcome.fingerprint, state.path, again=again)


def _print_next(node: str, fingerprint: str, state: Path, *, again: bool) -> None:
    click.echo("Next:")
    click.echo("  1. Read the fingerprint to the federation operator, over a way that you trust. They run:")
    click.echo(f"       hansa admin node confirm {node} --fingerprint {fingerprint}")
    if again:
        click.echo("  2. The agent connects by itself within half a minute after that. If it does not run:")
        click.echo(f"       hansa-node --state {state} run")
        return
    click.echo(f"  2. hansa-node --state {state} card --output json > {node}.card.json")
    click.echo("     and give them that card: they put the node's keys into the directory with")
    click.echo("       hansa trust add-node REPO --card FILE --organisation ORG")
    click.echo(f"  3. hansa-node --state {state} run")


@click.command(short_help="Print the node's public keys, for the directory.")
@state_options
@output_option
@click.pass_obj
def card(invocation: Invocation) -> None:
    """Print the node's card: its name and public keys, with a fingerprint over them.

    The federation's operators put it into the directory. Compare the
    fingerprint with them over a way that you trust: jobs are admitted, and
    releases believed, by these keys.
    """
    state = invocation.open_state()
    from hansa.contract.raw_keys import key_digest
    from node_agent.keys.identity import node_card

    found = node_card(state).model_dump(mode="json", exclude_unset=True)
    if invocation.json:
        print_json(found)
        return
    # Who signs the directory sees keys by their digests (`hansa trust status`); the card is not at hand there.
    digests = {name: key_digest(found[name]) for name in ("signing_key", "agreement_key")}
    print_facts({name.replace("_", " "): value for name, value in {**found, **digests}.items() if name != "v"})
