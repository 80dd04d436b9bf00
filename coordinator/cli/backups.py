"""``hansa-coordinator backup`` and ``restore``."""

from __future__ import annotations

import getpass
from pathlib import Path

import click

from coordinator.backups import Wanted, back_up, check
from coordinator.backups import restore as restore_backup
from coordinator.services.nodes import Act
from hansa.runtime.backups import Manifest
from hansa.runtime.clock import utc_now

_STATE_DIR = click.Path(file_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("state_dir", type=_STATE_DIR)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--without-keys", is_flag=True, help="Leave the private keys out; keep them elsewhere.")
def backup(state_dir: Path, folder: Path, *, without_keys: bool) -> None:
    """Make a backup of the coordinator in STATE_DIR as the new folder FOLDER. It may go on serving.

    The backup restores the coordinator whole: guard it like STATE_DIR itself.
    """
    manifest = back_up(state_dir, folder, keys=not without_keys, now=utc_now())
    click.echo(f"{folder}: {_words(manifest)}")
    if manifest.keys:
        click.echo("It holds the coordinator's private keys: whoever has it can be the coordinator.", err=True)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.argument("state_dir", type=_STATE_DIR, required=False)
@click.option("--verify", is_flag=True, help="Only read the backup and check it.")
@click.option("--database", help="Restore into this database, which must be empty; '' is a file in STATE_DIR.")
@click.option("--above", type=click.IntRange(0), default=0, help="A generation that nodes are known to have seen.")
@click.option("--keys-from", type=_FOLDER, help="Take the private keys from this state folder.")
def restore(folder: Path, state_dir: Path | None, *, verify: bool, **wanted: object) -> None:
    """Restore the coordinator of the backup FOLDER into STATE_DIR. Stop the server first.

    What is in STATE_DIR is moved aside, whole. The restored store has a higher
    generation: see docs/runbooks/coordinator-lost.md for what comes next.
    """
    if verify or state_dir is None:
        if not verify:
            raise click.UsageError("Restore into which STATE_DIR? Or give --verify.")
        click.echo(f"sound: {_words(check(folder))}")
        return
    done = restore_backup(folder, state_dir, Wanted(**wanted), Act(getpass.getuser(), utc_now()))  # type: ignore[arg-type]  # click has checked the options
    click.echo(f"{state_dir}: {_words(done.manifest)}; now generation {done.generation}")
    if done.old is not None:
        click.echo(f"What was there is in {done.old}")


def _words(manifest: Manifest) -> str:
    made = f"{manifest.made_at:%Y-%m-%d %H:%M:%S} UTC"
    kept = f"{len(manifest.files)} files, {'with' if manifest.keys else 'without'} keys"
    return f"{manifest.of} of {manifest.name}, {made}, generation {manifest.generation}, {kept}"
