"""The node's database: one SQLite file, one connection, one writer thread.

Only the agent opens it. One thread means one transaction at a time, so that
"read, decide, write" needs no locks; one connection keeps clear of the
WAL-reset fault of SQLite before 3.51.3.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from node_agent.store.migrate import upgrade

T = TypeVar("T")


def sqlite_module() -> ModuleType:
    """Return the newest SQLite there is: pysqlite3's own, else Python's."""
    try:
        from pysqlite3 import dbapi2
    except ImportError:
        return sqlite3
    return dbapi2  # type: ignore[no-any-return]


def open_engine(path: Path) -> Engine:
    """Return an engine with one connection, durable at each commit."""
    engine = create_engine(
        f"sqlite:///{path}",
        module=sqlite_module(),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    # SQLAlchemy begins transactions itself (below), not the driver.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=5000",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        "mmap_size=0",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Database:
    """Runs transactions, one after the other."""

    def __init__(self, engine: Engine) -> None:
        """Take an engine whose schema is current; ``open`` makes one."""
        self._engine = engine
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open the file, make or upgrade its schema, and check it.

        Raises:
            sqlalchemy.exc.DatabaseError: the file is no database, or is damaged.
        """
        path.touch(mode=0o600)
        engine = open_engine(path)
        with engine.begin() as connection:
            upgrade(connection)
        return cls(engine)

    async def run(self, work: Callable[[Session], T]) -> T:
        """Return what ``work`` returns, once its transaction is committed.

        ``work`` runs in the writer's thread and must do nothing but database
        work; if it raises, nothing of it is kept.
        """
        loop = asyncio.get_running_loop()
        # What is logged within is about what the caller is about.
        transact = partial(contextvars.copy_context().run, self._transact, work)
        return await asyncio.shield(loop.run_in_executor(self._writer, transact))

    def _transact(self, work: Callable[[Session], T]) -> T:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            return work(session)

    def close(self) -> None:
        """Finish what was begun, then close the file."""
        self._writer.shutdown(wait=True)
        self._engine.dispose()
