"""``hansa-node policy``: who and what the node admits, and what leaves how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, login_name, output_option, state_options
from node_agent.cli.render import print_json
from node_agent.config import StateFolder, lock_state_folder
from node_agent.policy.file import load_policy, store_policy
from node_agent.policy.policy import (
    ListKey,
    Policy,
    data_holder,
    policy_digest,
    policy_of,
    to_toml,
    with_entry,
    with_value,
    without_entry,
)

Kind = Literal["analysis", "submitter", "data-holder"]
_KINDS: Final[Mapping[Kind, ListKey]] = {
    "analysis": "analyses",
    "submitter": "submitters",
    "data-holder": "data_holders",
}


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
    hansa-node policy set release auto|manual|dual
    hansa-node policy set disclosure.min_cohort 30
    hansa-node policy set admission.max_region_bases 500000
    """  # noqa: D301 - \b is click's mark for lines to keep
    _print(invocation, _change(invocation.open_state(), lambda old: with_value(old, key, value)))


@policy.command("allow")
@click.argument("kind", type=click.Choice(list(_KINDS)))
@click.argument("name")
@click.option("--key", type=click.Path(path_type=Path), help="A data holder's public key (the .pub file).")
@state_options
@output_option
@click.pass_obj
def allow(invocation: Invocation, kind: Kind, name: str, key: Path | None) -> None:
    """Admit an analysis (NAME@VERSION), a submitter (a person's name, or `*`), or a data holder (a name and a key).

    A data holder approves jobs. Their key is pinned here, besides the
    federation's directory: compare it with them, not with the coordinator.
    """
    if (kind == "data-holder") != (key is not None):
        raise click.UsageError("Give --key with a data holder, and with nobody else.")
    state = invocation.open_state()
    entry = name if key is None else _data_holder(name, key)
    _print(invocation, _change(state, lambda old: with_entry(old, _KINDS[kind], entry)))
    if kind == "analysis" and not _is_approved(state, name):
        click.echo(f"note: {name} is admitted here, but the trust repository does not approve it (yet).", err=True)


@policy.command("disallow")
@click.argument("kind", type=click.Choice(list(_KINDS)))
@click.argument("name")
@state_options
@output_option
@click.pass_obj
def disallow(invocation: Invocation, kind: Kind, name: str) -> None:
    """No longer admit an analysis (NAME@VERSION), a submitter or a data holder (by the name)."""
    _print(invocation, _change(invocation.open_state(), lambda old: without_entry(old, _KINDS[kind], name)))


def _data_holder(name: str, key: Path) -> str:
    from hansa.contract.raw_keys import key_digest, key_text
    from hansa.sdk.keys import read_public_key

    return data_holder(name, key_digest(key_text(read_public_key(key))))


def _is_approved(state: StateFolder, name: str) -> bool:
    """Say whether the trust repository approves the analysis, as far as the agent can tell."""
    from node_agent.local_api.client import AgentClient

    try:
        return name in AgentClient(state).status().get("trust", {}).get("analyses", [])
    except HansaError as error:
        if error.reason is not Reason.AGENT_UNREACHABLE:
            raise
        return True


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
