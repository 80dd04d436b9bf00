"""The coordinator's backup, and how a coordinator is restored from one.

The backup has all that makes a coordinator: its settings, its keys, and its
store. What is restored has forgotten what came later, and tells its nodes so
by a higher generation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from coordinator.config import CA_FOLDER, FILE, SERVER_CA_FILE, Config, load_config
from coordinator.services.nodes import Act
from coordinator.services.trust import renew_timestamp
from coordinator.store.audit import AuditRepository
from coordinator.store.backup import Facts, export_store, facts_of, import_store, raise_generation, withdraw_store
from coordinator.store.database import Database
from coordinator.store.federation import read_federation
from coordinator.trust_keys import TRUST_FOLDER, load_trust_keys
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.backups import STORE, Manifest, beside, making, move_in, next_generation, put, seal, verify
from hansa.runtime.drain import DrainFile
from hansa.runtime.durable import write_durably

OF: Final = "coordinator"
_FOLDERS: Final = (CA_FOLDER, TRUST_FOLDER)
_KEYS: Final = "*.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored. ``old``: where what was there is now, if anything was."""

    manifest: Manifest
    generation: int
    old: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How to restore.

    ``database``: another URL than the backup's settings have; ``above``: a
    generation that nodes are known to have seen; ``keys_from``: a state folder
    to take the keys from.
    """

    database: str | None = None
    above: int = 0
    keys_from: Path | None = None


def back_up(state_dir: Path, place: Path, *, keys: bool, now: datetime) -> Manifest:
    """Make a backup of the coordinator in ``state_dir``, which may be serving, as the new folder ``place``.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``, ``CONFIG_INVALID``, ``STORE_DAMAGED``;
            ``FILE_INVALID``, ``place`` is there already or cannot be made.
    """
    config = load_config(state_dir)
    with making(place) as part:
        database = Database.look(_existing(config.database_url(state_dir)))
        try:
            export_store(database, part / STORE)
        finally:
            database.close()
        for name in (FILE, SERVER_CA_FILE, *_FOLDERS):
            put((state_dir / name).resolve(), part / name)
        if not keys:
            _forget_keys(part)
        found = facts_of(part / STORE)
        return seal(
            part,
            of=OF,
            name=found.federation,
            made_at=now,
            store_uuid=found.store_uuid,
            generation=found.generation,
            schema_version=found.schema,
            keys=keys,
            state=str(state_dir.absolute()),
            heads=found.heads,
        )


def check(backup: Path) -> Manifest:
    """Read a backup whole; return what it is of.

    Raises:
        HansaError: ``BACKUP_INVALID``.
    """
    manifest = verify(backup, OF)
    _same(manifest, facts_of(backup / STORE))
    return manifest


def _same(manifest: Manifest, found: Facts) -> None:
    if (found.store_uuid, found.generation, found.federation) != (
        manifest.store_uuid,
        manifest.generation,
        manifest.name,
    ):
        raise HansaError(Reason.BACKUP_INVALID, "The backup's store is not the one that its manifest names.")


def restore(backup: Path, state_dir: Path, wanted: Wanted, act: Act) -> Restored:
    """Make the coordinator in ``state_dir`` from a backup; what is there is moved aside, whole.

    Raises:
        HansaError: ``BACKUP_INVALID``; ``STORE_IN_USE``, a coordinator serves
            there; ``STATE_FOLDER_INVALID``, the database is not empty;
            ``KEY_INVALID``, there are no keys. Nothing has changed.
    """
    manifest = check(backup)
    place = state_dir.resolve()
    with _stopped(place) as known, beside(place) as part:
        generation = next_generation(backup, manifest, known, wanted.above)
        _lay_out(backup, part, manifest, wanted)
        DrainFile(place).keep_for(part)
        config = _configured(part, wanted.database)
        url = make_url(config.database_url(place))
        # A store in the state folder is made in the part, and moves with it.
        inside = url.get_backend_name() == "sqlite" and Path(url.database or "").parent == place
        target = (
            f"sqlite:///{part / Path(url.database or '').name}" if inside else url.render_as_string(hide_password=False)
        )
        online = load_trust_keys(part).online
        # No more than one version a second is ever given out.
        ahead = max(0, int((act.now - manifest.made_at).total_seconds())) + 1

        def begin_anew(session: Session) -> None:
            _begin_anew(session, generation, act)
            renew_timestamp(session, online, act.now, ahead=ahead)

        import_store(backup / STORE, target, part, begin_anew)
        try:
            old = move_in(part, place, act.now)
        except OSError:
            # A file goes with the folder; another database was empty and is to be so again.
            withdraw_store(target)
            raise
    return Restored(manifest=manifest, generation=generation, old=old)


def _begin_anew(session: Session, generation: int, act: Act) -> None:
    raise_generation(session, generation)
    AuditRepository(session).append(
        at=act.now,
        actor=act.actor,
        action="store_restored",
        subject=f"generation {generation}",
        facts={"generation": generation},
    )


@contextmanager
def _stopped(place: Path) -> Iterator[int]:
    """Keep the coordinator in ``place`` from beginning meanwhile; yield its generation, 0 if it cannot be read."""
    database = None
    try:
        config = load_config(place)
        database = Database.open(_existing(config.database_url(place)))
    except HansaError as error:
        # Damaged, or not there at all: that is why one restores.
        if error.reason is Reason.STORE_IN_USE:
            raise
    known = _generation(database)
    if database is not None and database.engine.dialect.name != "sqlite":
        # Filling it takes its lock again; an SQLite file that is replaced stays locked until it is out of the way.
        database.close()
        database = None
    try:
        yield known
    finally:
        if database is not None:
            database.close()


def _generation(database: Database | None) -> int:
    federation = None
    if database is not None:
        with suppress(Exception):  # whatever ails the old store, it is not the one that counts
            federation = database.run_sync(read_federation)
    return 0 if federation is None else federation.generation


def _existing(url: str) -> str:
    """Return ``url`` if it is of a store that is there; opening would make an SQLite file."""
    place = make_url(url)
    if place.get_backend_name() == "sqlite" and not Path(place.database or "").exists():
        raise HansaError(Reason.STATE_FOLDER_INVALID, f"There is no store at {place.database}.", field="database")
    return url


def _lay_out(backup: Path, part: Path, manifest: Manifest, wanted: Wanted) -> None:
    for name in (FILE, SERVER_CA_FILE, *_FOLDERS):
        put(backup / name, part / name)
    if wanted.keys_from is not None:
        for folder in _FOLDERS:
            for key in sorted((wanted.keys_from / folder).glob(_KEYS)):
                put(key, part / folder / key.name)
    elif not manifest.keys:
        raise HansaError(Reason.KEY_INVALID, "The backup has no keys; name a state folder that has, with --keys-from.")


def _configured(part: Path, database: str | None) -> Config:
    config = load_config(part)
    if database is not None:
        config = config.model_copy(update={"database": database})
        write_durably(part / FILE, config.to_toml().encode())
    return config


def _forget_keys(part: Path) -> None:
    for folder in _FOLDERS:
        for key in (part / folder).glob(_KEYS):
            key.unlink()
