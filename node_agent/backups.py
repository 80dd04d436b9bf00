"""The node's backup, and how a node is restored from one.

The backup has the node's settings, policy, keys, trust, analyses and store; its
datasets only if asked for, since they are large and can be imported again.
What is restored has forgotten what came later, and tells the coordinator so by
a higher generation.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.backups import STORE, Manifest, beside, making, move_in, next_generation, put, seal, verify
from hansa.runtime.clock import Clock
from hansa.runtime.drain import DrainFile
from hansa.runtime.sqlite import copy_store, damage_named, open_reader
from node_agent.audit.entries import store_restored
from node_agent.audit.log import append
from node_agent.config import StateFolder, create_state_folder, load_config, lock_state_folder
from node_agent.store.database import Database
from node_agent.store.models import DatasetRow
from node_agent.store.outbox import store_row

OF: Final = "node"
_FILES: Final = ("agent.toml", "policy.toml")
_FOLDERS: Final = ("keys", "trust", "analyses")
_SHOWN_FOLDER, _SHOWN_FILE = 0o755, 0o444
_KEYS, _DATASETS = "keys", "datasets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What of a node goes into its backup, beside store, settings, policy, trust and analyses."""

    keys: bool = True
    datasets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How to restore.

    ``above``: a generation that the coordinator is known to have seen;
    ``keys_from``: a state folder to take the keys from.
    """

    above: int = 0
    keys_from: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored.

    ``old``: where what was there is now, if anything was; ``missing``: the
    datasets whose files are not there and have to be imported again.
    """

    manifest: Manifest
    generation: int
    old: Path | None
    missing: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backups:
    """Makes backups of the node while its agent runs."""

    state: StateFolder
    clock: Clock

    async def make(self, place: Path, content: Content) -> Manifest:
        """Make a backup as the new folder ``place``; the agent goes on meanwhile.

        Raises:
            HansaError: ``FILE_INVALID``, ``place`` is there already or cannot
                be made; ``STORE_DAMAGED``.
        """
        if not place.is_absolute():
            raise HansaError(Reason.FILE_INVALID, "The backup's place must be an absolute path.", field="folder")
        return await asyncio.to_thread(back_up, self.state, place, content, self.clock())


def back_up(state: StateFolder, place: Path, content: Content, now: datetime) -> Manifest:
    """Make a backup of ``state`` as the new folder ``place``. Whoever has the store's lock may go on writing.

    Raises:
        HansaError: ``FILE_INVALID``; ``STORE_DAMAGED``; ``STATE_FOLDER_INVALID``, there is no store yet.
    """
    if not state.database.exists():
        raise HansaError(Reason.STATE_FOLDER_INVALID, "The node has no store yet: its agent has never run.")
    with making(place) as part:
        copy_store(state.database, part / STORE)
        wanted = [*_FILES, *_FOLDERS, *([_DATASETS] if content.datasets else [])]
        for name in wanted:
            if (state.path / name).exists() and (content.keys or name != _KEYS):
                put((state.path / name).resolve(), part / name)
        facts = _facts(part / STORE)
        return seal(part, of=OF, name=_name(state), made_at=now, keys=content.keys, state=str(state.path), **facts)


def _name(state: StateFolder) -> str:
    try:
        return load_config(state).node
    except HansaError:
        # Not enrolled, or settings that cannot be read: all the more reason for a backup.
        return ""


def _facts(path: Path) -> dict[str, Any]:
    with damage_named(), closing(open_reader(path)) as connection:
        try:
            row = connection.execute("SELECT store_uuid, generation, command_seq FROM store").fetchone()
            schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
            events = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
            log = connection.execute("SELECT count(*) FROM audit_leaves").fetchone()[0]
        except Exception as error:
            raise HansaError(Reason.BACKUP_INVALID, "It holds no node's store.", log=str(error)) from error
    if row is None:
        raise HansaError(Reason.BACKUP_INVALID, "It holds no node's store.")
    heads = {"events": events, "commands": row[2], "log": log}
    return {"store_uuid": row[0], "generation": row[1], "schema_version": schema, "heads": heads}


def check(backup: Path) -> Manifest:
    """Read a backup whole; return what it is of.

    Raises:
        HansaError: ``BACKUP_INVALID``.
    """
    manifest, found = verify(backup, OF), _facts(backup / STORE)
    if (found["store_uuid"], found["generation"]) != (manifest.store_uuid, manifest.generation):
        raise HansaError(Reason.BACKUP_INVALID, "The backup's store is not the one that its manifest names.")
    return manifest


def restore(backup: Path, place: Path, wanted: Wanted, *, by: str, now: datetime) -> Restored:
    """Make the node at ``place`` from a backup; what is there is moved aside, whole.

    Datasets that the backup does not have are taken over from there.

    Raises:
        HansaError: ``BACKUP_INVALID``; ``AGENT_RUNNING``; ``KEY_INVALID``,
            there are no keys; ``FILE_INVALID``. Nothing has changed.
    """
    # The folder itself is exchanged, where a link leads to it; what stands in the store names it as the operator does.
    manifest, named, place = check(backup), place.absolute(), place.resolve()
    old_state = StateFolder(place)
    with ExitStack() as stack:
        if place.is_dir():
            stack.enter_context(lock_state_folder(old_state))
        known = _generation(old_state.database)
        part = StateFolder(stack.enter_context(beside(place)))
        _lay_out(backup, part, manifest, wanted)
        DrainFile(place).keep_for(part.path)
        if not (part.path / _DATASETS).exists() and old_state.datasets.is_dir():
            shutil.copytree(old_state.datasets, part.datasets, copy_function=_share)
        create_state_folder(part.path)
        generation = next_generation(backup, manifest, known, wanted.above)
        copy_store(backup / STORE, part.database)
        _open_to_sandboxes(part)
        missing = _begin_anew(part, named, lambda session: _raise(session, generation, by, now))
        old = move_in(part.path, place, now)
    return Restored(manifest=manifest, generation=generation, old=old, missing=missing)


def _share(source: str, target: str) -> None:
    """Let old and new folder have one file: a snapshot never changes. Copy it where they lie on two disks."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)


def _lay_out(backup: Path, part: StateFolder, manifest: Manifest, wanted: Wanted) -> None:
    if wanted.keys_from is None and not manifest.keys:
        raise HansaError(Reason.KEY_INVALID, "The backup has no keys; name a state folder that has, with --keys-from.")
    for name in (*_FILES, *_FOLDERS, _DATASETS):
        source = (wanted.keys_from or backup) / name if name == _KEYS else backup / name
        if source.exists():
            put(source, part.path / name)


def _open_to_sandboxes(part: StateFolder) -> None:
    """Let analyses and snapshots be read, and not written, by any user: a sandbox has one of its own.

    In the backup they are closed like all else; the state folder around them stays closed.
    """
    bundles, snapshots = part.analyses.glob("*"), part.datasets.glob("*/*")
    for folder in (*bundles, *snapshots):
        for path in (*folder.rglob("*"), folder):
            if not path.is_symlink():
                path.chmod(_SHOWN_FOLDER if path.is_dir() else _SHOWN_FILE)


def _generation(path: Path) -> int:
    """Return the generation of the store that is replaced; 0 if there is none that can be read."""
    found = 0
    if path.exists():
        with suppress(Exception):  # whatever ails it, it is not the one that counts
            found = int(_facts(path)["generation"])
    return found


def _begin_anew(part: StateFolder, named: Path, change: Callable[[Session], None]) -> Sequence[str]:
    """Make the store in ``part`` the one of the node at ``named``; return the datasets without files."""
    database = Database.open(part.database)

    def work(session: Session) -> list[str]:
        change(session)
        missing = []
        for row in session.scalars(select(DatasetRow).order_by(DatasetRow.dataset_id)):
            inner = Path(_DATASETS) / row.dataset_id / Path(row.folder).name
            row.folder = str(named / inner)
            if not (part.path / inner).is_dir():
                missing.append(row.dataset_id)
        return missing

    try:
        return database.run_sync(work)
    finally:
        database.close()


def _raise(session: Session, generation: int, by: str, now: datetime) -> None:
    store_row(session).generation = generation
    append(session, store_restored(generation, by), now)
