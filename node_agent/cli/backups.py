"""``hansa-node backup`` and ``restore``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hansa.contract.errors import HansaError, Reason
from node_agent.cli.invocation import Invocation, login_name, output_option, quiet_logs, state_options
from node_agent.cli.render import print_facts, print_json

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(short_help="Make a backup of the node.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--without-keys", is_flag=True, help="Leave the node's private keys out; keep them elsewhere.")
@click.option("--with-datasets", is_flag=True, help="Take the datasets' snapshots too, which hold people's genotypes.")
@state_options
@output_option
@click.pass_obj
def backup(invocation: Invocation, folder: Path, *, without_keys: bool, with_datasets: bool) -> None:
    """Make a backup of the node as the new folder FOLDER; the agent may go on running.

    The backup restores the node whole but for its datasets: guard it like the
    state folder itself.
    """
    quiet_logs()
    made = _make(invocation, folder.absolute(), keys=not without_keys, datasets=with_datasets)
    _show(invocation, {"folder": str(folder.absolute()), **_facts(made)})
    if made["keys"]:
        click.echo("It holds the node's private keys: whoever has it can be the node.", err=True)


def _make(invocation: Invocation, place: Path, *, keys: bool, datasets: bool) -> dict[str, Any]:
    from node_agent.local_api.client import AgentClient

    state = invocation.open_state()
    try:
        return AgentClient(state).back_up(place, keys=keys, datasets=datasets)
    except HansaError as error:
        if error.reason is not Reason.AGENT_UNREACHABLE:
            raise
    # No agent has the store: it is ours as long as we hold the folder.
    from hansa.runtime.clock import utc_now
    from node_agent.backups import Content, back_up
    from node_agent.config import lock_state_folder

    with lock_state_folder(state):
        return back_up(state, place, Content(keys=keys, datasets=datasets), utc_now()).model_dump(mode="json")


@click.command(short_help="Restore the node from a backup.")
@click.argument("folder", type=_FOLDER)
@click.option("--verify", is_flag=True, help="Only read the backup and check it.")
@click.option("--above", type=click.IntRange(0), default=0, help="A generation that the coordinator has seen.")
@click.option("--keys-from", type=_FOLDER, help="Take the private keys from this state folder.")
@state_options
@output_option
@click.pass_obj
def restore(invocation: Invocation, folder: Path, *, verify: bool, above: int, keys_from: Path | None) -> None:
    """Restore the node of the backup FOLDER into the state folder. Stop the agent first.

    What is in the state folder is moved aside, whole; datasets that the backup
    has not are taken over. The restored store has a higher generation: see
    docs/runbooks/node-restored-from-backup.md for what comes next.
    """
    quiet_logs()
    from hansa.runtime.clock import utc_now
    from node_agent.backups import Wanted, check
    from node_agent.backups import restore as restore_backup

    if verify:
        _show(invocation, {"sound": True, **_facts(check(folder).model_dump(mode="json"))})
        return
    place, wanted = invocation.state_path(), Wanted(above=above, keys_from=keys_from)
    done = restore_backup(folder, place, wanted, by=login_name(), now=utc_now())
    facts = _facts(done.manifest.model_dump(mode="json"))
    _show(
        invocation,
        {
            "state": str(place),
            **facts,
            "generation": done.generation,
            "moved_aside": str(done.old) if done.old else None,
            "datasets_to_import_again": list(done.missing),
        },
    )


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    kept = ("name", "made_at", "store_uuid", "generation", "keys")
    return {**{name: manifest[name] for name in kept}, "files": len(manifest["files"])}


def _show(invocation: Invocation, facts: dict[str, Any]) -> None:
    if invocation.json:
        print_json(facts)
        return
    print_facts({name.replace("_", " "): _shown(value) for name, value in facts.items()})


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "nothing" if value is None else str(value)
