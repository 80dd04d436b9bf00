"""The schema's version: bringing it up to date, and asking whether it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from coordinator.store.database import Database, unreachable
from hansa.contract.errors import HansaError, Reason

T = TypeVar("T")

_FOLDER: Final = Path(__file__).parent / "migrations"


def migrate(database: Database) -> None:
    """Bring the schema to this release's version, in one transaction.

    Raises:
        HansaError: ``CONFIG_INVALID``; the database cannot be reached, or a
            newer release has migrated it.
    """
    try:
        _run(database, _upgrade)
    except CommandError as error:
        raise HansaError(
            Reason.CONFIG_INVALID,
            "The store was migrated by a newer release of Hansa; use that one.",
            field="database",
            log=str(error),
        ) from error


def is_current(database: Database) -> bool:
    """Say whether the schema is exactly this release's.

    Raises:
        HansaError: ``CONFIG_INVALID``; the database cannot be reached.
    """
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    return _run(database, _version) == newest


def _run(database: Database, work: Callable[[Connection], T]) -> T:
    try:
        return database.run_sync(lambda session: work(session.connection()))
    except OperationalError as error:
        raise unreachable(error) from error


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    version: str | None = MigrationContext.configure(connection).get_current_revision()
    return version


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config
