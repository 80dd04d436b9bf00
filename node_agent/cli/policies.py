"""``hansa-node policy``: who and what the node admits, and what leaves how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, login_name, output_option, quiet_logs, state_options
from node_agent.cli.render import print_json
from node_agent.config import StateFolder, load_settings, lock_state_folder
from node_agent.policy.file import load_policy, store_policy
from node_agent.policy.policy import Policy, policy_digest, policy_of, to_toml, with_entry, with_value, without_entry

Kind = Literal["analysis", "submitter"]


@click.group(short_help="See and change the node's policy.")
@state_options
def policy() -> None:
    """See and change the node's policy; what it does not allow is denied.

    A change is in force at once when the agent runs, else when it starts.
    """


@policy.command("show")
@state_options
@output_option
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Show the policy in force."""
    _print(invocation, _current(invocation.open_state()))


@policy.command("set")
@click.argument("key")
@click.argument("value")
@state_options
@output_option
@click.pass_obj
def set_(invocation: Invocation, key: str, value: str) -> None:
    """Set KEY (section.key) to VALUE.

    \b
    hansa-node policy set release auto|manual
    hansa-node policy set disclosure.min_cohort 30
    hansa-node policy set admission.max_region_bases 500000
    """  # noqa: D301 - \b is click's mark for lines to keep
    _print(invocation, _change(invocation.open_state(), lambda old: with_value(old, key, value)))


@policy.command("allow")
@click.argument("kind", type=click.Choice(["analysis", "submitter"]))
@click.argument("name")
@state_options
@output_option
@click.pass_obj
def allow(invocation: Invocation, kind: Kind, name: str) -> None:
    """Admit an analysis (NAME@VERSION) or a submitter (a person's name, or `*`)."""
    state = invocation.open_state()
    _print(invocation, _change(state, lambda old: with_entry(old, _list_of(kind), name)))
    if kind == "analysis" and name not in _installed(state):
        click.echo(f"note: {name} is admitted, but not installed at this node.", err=True)


@policy.command("disallow")
@click.argument("kind", type=click.Choice(["analysis", "submitter"]))
@click.argument("name")
@state_options
@output_option
@click.pass_obj
def disallow(invocation: Invocation, kind: Kind, name: str) -> None:
    """No longer admit an analysis (NAME@VERSION) or a submitter."""
    _print(invocation, _change(invocation.open_state(), lambda old: without_entry(old, _list_of(kind), name)))


def _list_of(kind: Kind) -> Literal["submitters", "analyses"]:
    return "analyses" if kind == "analysis" else "submitters"


def _installed(state: StateFolder) -> set[str]:
    quiet_logs()
    from node_agent.catalogue import analysis_folders, installed_analyses

    return set(installed_analyses(analysis_folders(load_settings(state).analyses_dir)))


def _current(state: StateFolder) -> Policy:
    from node_agent.local_api.client import AgentClient

    try:
        agent = AgentClient(state)
        return policy_of(agent.policy()["policy"])
    except HansaError as error:
        if error.reason is not Reason.AGENT_UNREACHABLE:
            raise
        return load_policy(state.policy_file)


def _change(state: StateFolder, change: Callable[[Policy], Policy]) -> Policy:
    """Return the changed policy, put in force by the agent or, if none runs, written here."""
    from node_agent.local_api.client import AgentClient

    try:
        agent = AgentClient(state)
        changed = change(policy_of(agent.policy()["policy"]))
        return policy_of(agent.put_policy(changed.model_dump(mode="json"), by=login_name())["policy"])
    except HansaError as error:
        if error.reason is not Reason.AGENT_UNREACHABLE:
            raise
    # Under the lock, so that no agent starts on the old policy while the new one is written.
    with lock_state_folder(state):
        changed = change(load_policy(state.policy_file))
        store_policy(state.policy_file, changed)
        return changed


def _print(invocation: Invocation, current: Policy) -> None:
    if invocation.json:
        value: dict[str, Any] = {"policy": current.model_dump(mode="json"), "digest": policy_digest(current)}
        print_json(value)
        return
    click.echo(to_toml(current), nl=False)
    click.echo(f"\n# digest {policy_digest(current)}")
