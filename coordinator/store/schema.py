"""The schema's version: bringing it up to date, and asking whether it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from coordinator.store.database import Database

_FOLDER: Final = Path(__file__).parent / "migrations"


def migrate(database: Database) -> None:
    """Bring the schema to this release's version, in one transaction."""
    database.run_sync(lambda session: _upgrade(session.connection()))


def is_current(database: Database) -> bool:
    """Say whether the schema is exactly this release's."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    return database.run_sync(lambda session: _version(session.connection())) == newest


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
