"""The whole store as one SQLite file, and back into a store of either kind.

A backup of PostgreSQL has the same form as one of SQLite: each can be restored
into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, delete, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

import coordinator.store.audit_models
import coordinator.store.job_models
import coordinator.store.people_models
import coordinator.store.trust_models  # noqa: F401 - each declares its tables
from coordinator.store.base import Base
from coordinator.store.database import Database
from coordinator.store.federation import read_federation
from coordinator.store.schema import is_current, migrate
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.sqlite import copy_store, damage_named, open_reader

_ROWS: Final = 500
_WORK: Final = "work.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a copy of a store says of itself: ``heads`` has, by node, how far commands and events go."""

    federation: str
    store_uuid: str
    generation: int
    schema: str
    heads: dict[str, Any]


def export_store(database: Database, target: Path) -> None:
    """Write the store as it stands now into the new SQLite file ``target``; whoever writes goes on writing.

    Raises:
        HansaError: ``STORE_DAMAGED``; ``STATE_FOLDER_INVALID``, the schema is
            of another release (PostgreSQL only).
    """
    url = database.engine.url
    if database.engine.dialect.name == "sqlite":
        copy_store(database.file, target)
        return
    if not is_current(database):
        raise HansaError(Reason.STATE_FOLDER_INVALID, f"The schema of {url.database} is of another release.")
    work = target.with_name(_WORK)
    copy = Database.open(f"sqlite:///{work}")
    try:
        migrate(copy)
        # One state of the store, and no write of ours in it.
        with database.engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            copy.run_sync(lambda session: _fill(connection, session))
    finally:
        copy.close()
    copy_store(work, target)
    _forget(work)


def import_store(source: Path, url: str, scratch: Path, edit: Callable[[Session], None]) -> None:
    """Make the store at ``url`` from the file ``source``, brought to this release's schema.

    Args:
        source: a backup's store; it is not changed.
        url: an SQLite file that is not there yet, or an empty database on PostgreSQL.
        scratch: a folder for files that are in between; they are deleted.
        edit: changes the store in the transaction that fills it.

    Raises:
        HansaError: ``STATE_FOLDER_INVALID``, there is something already;
            ``CONFIG_INVALID``, the store is of a newer release.
    """
    place = make_url(url)
    if place.get_backend_name() == "sqlite":
        _import_file(source, Path(place.database or ""), edit)
        return
    work = scratch / _WORK
    _import_file(source, work, lambda _session: None)
    database = Database.open(url)
    try:
        migrate(database)
        with closing(_reading(work)) as copy:
            database.run_sync(lambda session: _fill_empty(copy.connection, session, edit))
    finally:
        database.close()
    _forget(work)


def withdraw_store(url: str) -> None:
    """Take back what ``import_store`` has put into a database on PostgreSQL."""
    if make_url(url).get_backend_name() == "sqlite":
        return
    database = Database.open(url)
    try:
        database.run_sync(_empty)
    finally:
        database.close()


def _empty(session: Session) -> None:
    for table in reversed(Base.metadata.sorted_tables):
        session.execute(delete(table))


def _import_file(source: Path, target: Path, edit: Callable[[Session], None]) -> None:
    if target.exists():
        raise HansaError(Reason.STATE_FOLDER_INVALID, f"{target} is there already; move it away.", field="database")
    copy_store(source, target)
    database = Database.open(f"sqlite:///{target}")
    try:
        migrate(database)
        database.run_sync(edit)
    finally:
        database.close()


def _fill_empty(source: Connection, session: Session, edit: Callable[[Session], None]) -> None:
    present = read_federation(session)
    if present is not None:
        raise HansaError(
            Reason.STATE_FOLDER_INVALID,
            f"The database holds the federation {present.name} already; name an empty one with --database.",
            field="database",
        )
    _fill(source, session)
    edit(session)


def _fill(source: Connection, session: Session) -> None:
    for table in Base.metadata.sorted_tables:
        for rows in _rows(source, table):
            session.execute(insert(table), rows)


def _rows(source: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    with source.execution_options(yield_per=_ROWS).execute(select(table)) as found:
        for rows in found.mappings().partitions():
            yield [dict(row) for row in rows]


class _Reading:
    """A copy that is read while another store is filled from it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.connection = engine.connect()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        self._engine.dispose()


def _reading(path: Path) -> _Reading:
    return _Reading(Database.reader(path))


def _forget(work: Path) -> None:
    for one in work.parent.glob(f"{work.name}*"):
        one.unlink()


def facts_of(path: Path) -> Facts:
    """Return what the copy at ``path`` says of itself; of a store of any release.

    Raises:
        HansaError: ``BACKUP_INVALID``; it is no coordinator's store.
    """
    with damage_named(), closing(open_reader(path)) as connection:
        try:
            row = connection.execute("SELECT name, store_uuid, generation FROM federation").fetchone()
            schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            heads = _heads(connection)
        except Exception as error:
            raise HansaError(Reason.BACKUP_INVALID, "It holds no coordinator's store.", log=str(error)) from error
    if row is None or schema is None:
        raise HansaError(Reason.BACKUP_INVALID, "It holds no coordinator's store.")
    return Facts(federation=row[0], store_uuid=row[1], generation=row[2], schema=schema[0], heads=heads)


def _heads(connection: Any) -> dict[str, Any]:
    log = connection.execute("SELECT count(*) FROM audit").fetchone()[0]
    commands = dict(connection.execute("SELECT node, max(seq) FROM commands GROUP BY node").fetchall())
    events = connection.execute("SELECT node, event_cursor_seq FROM nodes").fetchall()
    return {"log": log, "nodes": {node: {"events": seq, "commands": commands.get(node, 0)} for node, seq in events}}


def raise_generation(session: Session, generation: int) -> None:
    """Give the store a generation, and a term above every one that was served."""
    session.execute(text("UPDATE federation SET generation = :generation, term = term + 1"), {"generation": generation})
