"""The command ``hansa-coordinator``: begin, serve and migrate one coordinator."""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import click
import structlog

from coordinator.bootstrap import open_foundation, run_coordinator
from coordinator.cli.backups import backup, restore
from coordinator.config import SERVER_CA_FILE, Config, load_config, make_config
from coordinator.doctor import FAILED, examine
from coordinator.founding import Founding, check_free, found
from coordinator.services.erasure import erase_words
from coordinator.services.nodes import Act
from coordinator.services.trust import federation_of
from coordinator.store.audit_check import verify_log
from coordinator.store.database import Database
from coordinator.store.schema import migrate as migrate_store
from coordinator.trust_keys import ROOT_FILE, TRUST_FOLDER, read_keys
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import PERSON_NAME
from hansa.runtime.clock import utc_now
from hansa.runtime.logging import set_up_logging
from hansa.runtime.supervisor import stop_on_signals
from hansa.trust.files import read_files

_log = structlog.get_logger(__name__)

_STATE_DIR = click.Path(file_okay=False, path_type=Path)
_PORT = click.IntRange(1, 65535)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

F = TypeVar("F", bound=Callable[..., Any])


class _Commands(click.Group):
    """Ends a refused command with one line and status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HansaError as error:
            click.echo(f"hansa-coordinator: {error.public} [{error.reason}]", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hansa")
def main() -> None:
    """Begin, serve and migrate the coordinator of a federation."""


main.add_command(backup)
main.add_command(restore)


@main.command()
@click.argument("state_dir", type=_STATE_DIR)
@click.option(
    "--trust", "repository", required=True, type=_FOLDER, help="The trust repository, signed by its thresholds."
)
@click.option("--snapshot-key", required=True, type=_FILE, help="The on-line key that the root names for snapshots.")
@click.option("--timestamp-key", required=True, type=_FILE, help="The on-line key that the root names for timestamps.")
@click.option("--log-key", required=True, type=_FILE, help="The key that the directory names for the audit log.")
@click.option("--federation", default="", help="Name of the federation, if it must be this one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where people and nodes find the coordinator.")
@click.option("--listen", default="", help="Address to listen on, where that is not HOST.")
@click.option("--name", "names", multiple=True, help="Another name in the servers' certificate; may be repeated.")
@click.option("--people-port", type=_PORT, help="Default: 7443.")
@click.option("--enrolment-port", type=_PORT, help="Default: 7444.")
@click.option("--node-port", type=_PORT, help="Default: 7445.")
@click.option("--database", default="", help="postgresql+psycopg://… (default: an SQLite file in STATE_DIR).")
def init(
    state_dir: Path,
    *,
    repository: Path,
    snapshot_key: Path,
    timestamp_key: Path,
    log_key: Path,
    federation: str,
    **settings: Any,
) -> None:
    """Begin the coordinator of a federation in STATE_DIR, which must not exist or be empty.

    The trust repository says who the federation's people are. Its newest root
    is pinned; the three keys are copied into STATE_DIR.
    """
    check_free(state_dir)
    keys = read_keys(snapshot=snapshot_key, timestamp=timestamp_key, log=log_key)
    files = read_files(repository)
    named = federation or federation_of(files)
    given = {name: value for name, value in settings.items() if value is not None}
    config = make_config(federation=named, **given)
    found(Founding(state_dir, config, files, keys), store_uuid=str(uuid4()), now=utc_now())
    click.echo(f"The coordinator of {config.federation} begins in {state_dir}.")
    click.echo("Next:")
    click.echo(f"  1. look for weak spots:         hansa-coordinator doctor {state_dir}")
    click.echo(f"  2. serve it:                    hansa-coordinator serve {state_dir}")
    click.echo(f"  3. print a client's profile:    hansa-coordinator profile {state_dir} --person NAME --key FILE")
    click.echo("  4. invite a node, two people:   hansa --profile FILE admin node invite NODE")


@main.command()
@click.argument("state_dir", type=_STATE_DIR)
def serve(state_dir: Path) -> None:
    """Serve the coordinator in STATE_DIR until SIGTERM or SIGINT. Logs are JSON on stderr."""
    set_up_logging("coordinator")
    # It tells each step of a check that we make ourselves.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    asyncio.run(_serve(state_dir))


async def _serve(state_dir: Path) -> None:
    stop = stop_on_signals()
    foundation = await asyncio.to_thread(open_foundation, state_dir, utc_now)
    try:
        await run_coordinator(foundation, stop)
    finally:
        foundation.database.close()
    _log.info("stopped")


@main.command()
@click.argument("state_dir", type=_STATE_DIR)
def migrate(state_dir: Path) -> None:
    """Bring the store of STATE_DIR to this release's schema. Stop the server first."""
    config = load_config(state_dir)
    database = Database.open(config.database_url(state_dir))
    try:
        migrate_store(database)
    finally:
        database.close()
    click.echo("The store has this release's schema.")


@main.command()
@click.argument("state_dir", type=_STATE_DIR)
@click.option("--person", default="", help="Whose profile; the name in the federation.")
@click.option("--key", "key_file", type=click.Path(path_type=Path), help="That person's private key file.")
@click.option(
    "--write",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write people.toml, server-ca.pem and root.json into this folder instead, to hand them out.",
)
def profile(state_dir: Path, person: str, key_file: Path | None, folder: Path | None) -> None:
    """Print what a client needs to know, as a profile (TOML)."""
    config = load_config(state_dir)
    pins = _Pins(state_dir.absolute() / SERVER_CA_FILE, state_dir.absolute() / TRUST_FOLDER / ROOT_FILE)
    key = "" if key_file is None else str(key_file.absolute())
    if folder is None:
        click.echo(_profile(config, pins, person, key), nl=False)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copies = _Pins(folder.absolute() / SERVER_CA_FILE, folder.absolute() / ROOT_FILE)
        copies.certificate.write_bytes(pins.certificate.read_bytes())
        copies.root.write_bytes(pins.root.read_bytes())
        (folder / "people.toml").write_text(_profile(config, copies, person, key), encoding="utf-8")
    except OSError as error:
        raise HansaError(Reason.FILE_INVALID, f"{folder} cannot be written: {error.strerror}.") from error
    click.echo(f"{folder / 'people.toml'}")


@main.command()
@click.argument("state_dir", type=_STATE_DIR)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", help="How to print (default: text).")
def doctor(state_dir: Path, output: str) -> None:
    """Look for what would weaken the coordinator in STATE_DIR; each fault with its remedy. Status 1 if there is one."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    findings = examine(state_dir)
    if output == "json":
        click.echo(json.dumps({"checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.outcome:8} {finding.check:20} {finding.detail}")
            if finding.remedy:
                click.echo(f"{'':8} {'':20} -> {finding.remedy}")
    if any(finding.outcome == FAILED for finding in findings):
        sys.exit(1)


@main.group()
def audit() -> None:
    """Check the record of what people did."""


@audit.command()
@click.argument("state_dir", type=_STATE_DIR)
def verify(state_dir: Path) -> None:
    """Recompute the audit log of STATE_DIR; status 1 if it was changed. Stop the server first."""
    config = load_config(state_dir)
    database = Database.open(config.database_url(state_dir))
    try:
        found = database.run_sync(verify_log)
    finally:
        database.close()
    if found.first_wrong is not None:
        click.echo(f"BROKEN: entry {found.first_wrong} is the first that is wrong.", err=True)
        sys.exit(1)
    click.echo(f"sound\nsize  {found.size}\nroot  {found.root.hex()}")


@dataclass(frozen=True, slots=True)
class _Pins:
    """The two files that a client trusts from the first call on."""

    certificate: Path
    root: Path


@audit.command()
@click.argument("state_dir", type=_STATE_DIR)
@click.option("--person", default="", help="Erase every entry by this person, or that names them.")
@click.option("--index", type=click.IntRange(1), help="Erase one entry, by its number in `hansa audit show`.")
def erase(state_dir: Path, person: str, index: int | None) -> None:
    """Erase the words of entries: who acted, and on whom. Stop the server first.

    The log stays whole and verifies: it holds keyed hashes of the words, and
    their salts are erased with them. The erasure is itself in the log.
    """
    if bool(person) == (index is not None):
        raise click.UsageError("Give --person or --index.")
    if person and not PERSON_NAME.fullmatch(person):
        raise HansaError(Reason.PERSON_INVALID, field="person")
    config = load_config(state_dir)
    database = Database.open(config.database_url(state_dir))
    try:
        count = database.run_sync(
            lambda session: erase_words(session, index=index, person=person, act=Act(getpass.getuser(), utc_now()))
        )
    finally:
        database.close()
    click.echo(f"{count} {'entry' if count == 1 else 'entries'} erased")


def _profile(config: Config, pins: _Pins, person: str, key_file: str) -> str:
    lines = [
        f'federation = "{config.federation}"',
        f'endpoint = "{config.endpoint(config.people_port)}"',
        f'ca_file = "{pins.certificate}"',
        f'trust_root = "{pins.root}"',
        f'person = "{person}"' if person else '# person = "your name in the federation"',
        f'key_file = "{key_file}"' if key_file else '# key_file = "/path/to/your/private/key"',
    ]
    return "\n".join(lines) + "\n"
