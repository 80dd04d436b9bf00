"""One transaction at a time on SQLite, a bounded pool of them on PostgreSQL.

SQLite: all transactions go through one thread with one connection, so that
there is one writer and no lock to wait for. PostgreSQL: a few threads, each
transaction SERIALIZABLE and repeated when the database asks for it.

One process has the store, by a lock. On PostgreSQL a lock alone is not safe:
it goes with its connection, and the process may not notice. So whoever serves
also raises the store's term, and each transaction finds its own or ends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, StaticPool

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.backoff import delays
from hansa.runtime.sqlite import (
    StoreLock,
    check_place,
    check_sound,
    is_full,
    open_reader,
    prepare_writer,
    sqlite_module,
)

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_POSTGRES_THREADS: Final = 4
_MOST_TRIES: Final = 12
# serialization_failure, deadlock_detected
_REPEATABLE: Final = frozenset({"40001", "40P01"})
_DISK_FULL: Final = "53100"
# "hansa" in ASCII; what the coordinator locks in its database on PostgreSQL.
_ADVISORY_LOCK: Final = 0x68616E7361


class Lock(Protocol):
    """What keeps other processes from the store."""

    def release(self) -> None:
        """Give the store free. May be repeated."""


class Database:
    """The store's one door. ``run`` is for the event loop, ``run_sync`` for commands."""

    def __init__(self, engine: Engine, threads: int, lock: Lock | None = None) -> None:
        """Take a ready engine; callers use ``open``."""
        self.engine = engine
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="store")
        self._lock = lock
        self._term: int | None = None
        self._make_room: Callable[[], bool] = lambda: False

    @classmethod
    def open(cls, url: str) -> Database:
        """Return the database at ``url`` for this process alone; nothing is created but SQLite's file.

        Args:
            url: ``sqlite:///path`` or ``postgresql+psycopg://…``.

        Raises:
            HansaError: ``CONFIG_INVALID``, another kind of database, or it
                cannot be used as it is set up; ``STORE_IN_USE``, another
                process has it; ``STORE_DAMAGED``.
        """
        place = _known(url)
        if place.get_backend_name() == "sqlite":
            return _open_sqlite(Path(place.database or ""))
        engine = _postgres(place)
        return cls(engine, _POSTGRES_THREADS, _PostgresLock.take(place))

    @classmethod
    def look(cls, url: str) -> Database:
        """Return the database at ``url`` to read in, also while another process has it.

        Raises:
            HansaError: as ``open``, but for ``STORE_IN_USE``.
        """
        place = _known(url)
        if place.get_backend_name() != "sqlite":
            return cls(_postgres(place), _POSTGRES_THREADS)
        try:
            return cls.open(url)
        except HansaError as error:
            if error.reason is not Reason.STORE_IN_USE:
                raise
            return cls(cls.reader(Path(place.database or "")), 1)

    @staticmethod
    def reader(path: Path) -> Engine:
        """Return an engine with one connection to an SQLite file, which can neither write nor checkpoint."""
        engine = create_engine(
            URL.create("sqlite", database=str(path)),
            module=sqlite_module(),
            creator=lambda: open_reader(path),
            poolclass=StaticPool,
            hide_parameters=True,
        )
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return engine

    @property
    def file(self) -> Path:
        """The file of a store in SQLite."""
        return Path(self.engine.url.database or "")

    def claim(self) -> int:
        """Raise the store's term, and return it. On PostgreSQL, each transaction from now on is held to it.

        Whoever served the store before can write no more; an SQLite file's
        lock sees to that by itself. Needs a store whose schema is current and
        that holds a federation.
        """
        term = self.run_sync(_raise_term)
        if self.engine.dialect.name != "sqlite":
            self._term = term
        return term

    def when_full(self, make_room: Callable[[], bool]) -> None:
        """Have ``make_room`` called when the disk is full; if it says true, the transaction is tried once more."""
        self._make_room = make_room

    async def run(self, work: Callable[[Session], T]) -> T:
        """Return ``work(session)``, run in one transaction in a store thread.

        ``work`` may be called more than once (PostgreSQL repeats a transaction
        that lost a race): it must have no effect outside of the session. Rows
        must not be used after it has returned; return values instead.

        Raises:
            HansaError: ``STORE_FULL``, nothing was kept; ``STORE_FENCED``;
                what ``work`` raises.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._transact, work)

    def run_sync(self, work: Callable[[Session], T]) -> T:
        """Return ``work(session)``, run in one transaction; blocks."""
        return self._threads.submit(self._transact, work).result()

    def close(self) -> None:
        """Wait for running transactions, close all connections, and give the store free."""
        # In this order: a connection that comes back to a closed pool is never closed.
        self._threads.shutdown()
        self.engine.dispose()
        if self._lock is not None:
            self._lock.release()

    def _transact(self, work: Callable[[Session], T]) -> T:
        try:
            return self._repeated(work)
        except DBAPIError as error:
            if not _disk_full(error):
                raise
        try:
            if self._make_room():
                return self._repeated(work)
        except DBAPIError as error:
            if not _disk_full(error):
                raise
        raise HansaError(Reason.STORE_FULL)

    def _repeated(self, work: Callable[[Session], T]) -> T:
        waits = delays(random.random, first=0.01, most=0.5)
        for tried in range(1, _MOST_TRIES + 1):
            try:
                with Session(self.engine, expire_on_commit=False) as session, session.begin():
                    self._check_term(session)
                    return work(session)
            except DBAPIError as error:
                if tried == _MOST_TRIES or getattr(error.orig, "sqlstate", None) not in _REPEATABLE:
                    raise
                _log.debug("transaction_repeated", tried=tried)
                time.sleep(next(waits))
        raise AssertionError("unreachable")  # pragma: no cover

    def _check_term(self, session: Session) -> None:
        # Read in the transaction itself: SERIALIZABLE makes whoever raises the term meanwhile come after us, or before.
        if self._term is not None and session.scalar(text("SELECT term FROM federation")) != self._term:
            raise HansaError(Reason.STORE_FENCED)


def _raise_term(session: Session) -> int:
    session.execute(text("UPDATE federation SET term = term + 1"))
    term: int = session.execute(text("SELECT term FROM federation")).scalar_one()
    return term


def _known(url: str) -> URL:
    place = make_url(url)
    if place.get_backend_name() != "sqlite" and place.drivername != "postgresql+psycopg":
        raise HansaError(
            Reason.CONFIG_INVALID, "The database is sqlite:///PATH or postgresql+psycopg://….", field="database"
        )
    return place


def _disk_full(error: DBAPIError) -> bool:
    return is_full(error.orig) or getattr(error.orig, "sqlstate", None) == _DISK_FULL


def _open_sqlite(path: Path) -> Database:
    check_place(path)
    lock = StoreLock.take(path)
    path.touch(mode=0o600)
    engine = _sqlite(path)
    try:
        with engine.connect() as connection:
            check_sound(connection.connection.driver_connection)
    except BaseException:
        engine.dispose()
        lock.release()
        raise
    return Database(engine, 1, lock)


def _sqlite(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        module=sqlite_module(),
        poolclass=StaticPool,
        hide_parameters=True,
        connect_args={"check_same_thread": False},
    )
    event.listen(engine, "connect", lambda connection, _record: prepare_writer(connection))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


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


class _PostgresLock:
    """A connection that holds the advisory lock, and does nothing else."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._engine, self._connection = engine, connection

    @classmethod
    def take(cls, url: URL) -> _PostgresLock:
        """Lock the database for this process.

        Raises:
            HansaError: ``STORE_IN_USE``; ``CONFIG_INVALID``, it cannot be
                reached, or it commits before its log is on the disk.
        """
        engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool, hide_parameters=True)
        try:
            connection = engine.connect()
        except OperationalError as error:
            raise unreachable(error) from error
        lock = cls(engine, connection)
        try:
            _check_durable(connection)
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}):
                raise HansaError(Reason.STORE_IN_USE, field="database")
        except BaseException:
            lock.release()
            raise
        return lock

    def release(self) -> None:
        """End the connection, and the lock with it."""
        with suppress(DBAPIError):
            self._connection.close()
        self._engine.dispose()


def _check_durable(connection: Connection) -> None:
    found = connection.scalar(text("SHOW synchronous_commit"))
    if found not in ("on", "remote_apply"):
        raise HansaError(
            Reason.CONFIG_INVALID,
            f"The database commits with synchronous_commit={found}; set it to on.",
            field="database",
        )


def unreachable(error: OperationalError) -> HansaError:
    """Return the refusal for a database that does not answer; the driver's text may hold the URL and is for our log."""
    return HansaError(Reason.CONFIG_INVALID, "The database cannot be reached.", field="database", log=str(error.orig))
