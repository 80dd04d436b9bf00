"""One transaction at a time on SQLite, a bounded pool of them on PostgreSQL.

SQLite: all transactions go through one thread with one connection, so that
there is one writer and no lock to wait for. PostgreSQL: a few threads, each
transaction SERIALIZABLE and repeated when the database asks for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.backoff import delays

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_POSTGRES_THREADS: Final = 4
_MOST_TRIES: Final = 12
# serialization_failure, deadlock_detected
_REPEATABLE: Final = frozenset({"40001", "40P01"})
_BUSY_MS: Final = 5000


class Database:
    """The store's one door. ``run`` is for the event loop, ``run_sync`` for commands."""

    def __init__(self, engine: Engine, threads: int) -> None:
        """Take a ready engine; callers use ``open``."""
        self.engine = engine
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="store")

    @classmethod
    def open(cls, url: str) -> Database:
        """Return the database at ``url``; nothing is created but SQLite's file.

        Args:
            url: ``sqlite:///path`` or ``postgresql+psycopg://…``.

        Raises:
            HansaError: ``CONFIG_INVALID``; another kind of database.
        """
        place = make_url(url)
        if place.get_backend_name() == "sqlite":
            return cls(_sqlite(place), 1)
        if place.drivername == "postgresql+psycopg":
            return cls(_postgres(place), _POSTGRES_THREADS)
        raise HansaError(
            Reason.CONFIG_INVALID, "The database is sqlite:///PATH or postgresql+psycopg://….", field="database"
        )

    async def run(self, work: Callable[[Session], T]) -> T:
        """Return ``work(session)``, run in one transaction in a store thread.

        ``work`` may be called more than once (PostgreSQL repeats a transaction
        that lost a race): it must have no effect outside of the session. Rows
        must not be used after it has returned; return values instead.
        """
        # What is logged within is about what the caller is about.
        transact = partial(contextvars.copy_context().run, self._transact, work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, transact)

    def run_sync(self, work: Callable[[Session], T]) -> T:
        """Return ``work(session)``, run in one transaction; blocks."""
        return self._threads.submit(self._transact, work).result()

    def close(self) -> None:
        """Wait for running transactions and close all connections."""
        # In this order: a connection that comes back to a closed pool is never closed.
        self._threads.shutdown()
        self.engine.dispose()

    def _transact(self, work: Callable[[Session], T]) -> T:
        waits = delays(random.random, first=0.01, most=0.5)
        for tried in range(1, _MOST_TRIES + 1):
            try:
                with Session(self.engine, expire_on_commit=False) as session, session.begin():
                    return work(session)
            except DBAPIError as error:
                if tried == _MOST_TRIES or getattr(error.orig, "sqlstate", None) not in _REPEATABLE:
                    raise
                _log.debug("transaction_repeated", tried=tried)
                time.sleep(next(waits))
        raise AssertionError("unreachable")  # pragma: no cover


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
        module=_sqlite_module(),
        poolclass=StaticPool,
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": _BUSY_MS / 1000},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def sqlite_version() -> str:
    """Return the version of the SQLite that the store would use."""
    return str(_sqlite_module().sqlite_version)


def _sqlite_module() -> ModuleType:
    """Return the newest SQLite there is; some systems' own one can lose a WAL."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return sqlite3


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions on its own: BEGIN IMMEDIATE is ours.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}").close()


def _postgres(url: URL) -> Engine:
    return create_engine(
        url,
        isolation_level="SERIALIZABLE",
        pool_size=_POSTGRES_THREADS,
        max_overflow=0,
        pool_pre_ping=True,
        # Values have no place in the text of an error.
        hide_parameters=True,
    )
