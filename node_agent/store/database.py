"""The node's database: one SQLite file, one connection, one writer thread.

Only the agent opens it. One thread means one transaction at a time, so that
"read, decide, write" needs no locks; one connection keeps clear of the
WAL-reset fault of SQLite before 3.51.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from hansa.contract.errors import HansaError, Reason
from hansa.runtime.sqlite import StoreLock, check_place, check_sound, is_full, prepare_writer, sqlite_module
from node_agent.store.migrate import upgrade

T = TypeVar("T")


def open_engine(path: Path) -> Engine:
    """Return an engine with one connection, durable at each commit."""
    engine = create_engine(
        f"sqlite:///{path}",
        module=sqlite_module(),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )
    event.listen(engine, "connect", lambda connection, _record: prepare_writer(connection))
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Database:
    """Runs transactions, one after the other."""

    def __init__(self, engine: Engine, lock: StoreLock | None = None) -> None:
        """Take an engine whose schema is current; ``open`` makes one."""
        self._engine = engine
        self._lock = lock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._make_room: Callable[[], bool] = lambda: False

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open the file for this process alone, check it, and make or upgrade its schema.

        Raises:
            HansaError: ``STORE_DAMAGED``; ``STORE_IN_USE``; ``CONFIG_INVALID``,
                the file lies where no store may.
        """
        check_place(path)
        lock = StoreLock.take(path)
        path.touch(mode=0o600)
        engine = open_engine(path)
        try:
            with engine.connect() as connection:
                check_sound(connection.connection.driver_connection)
            with engine.begin() as connection:
                upgrade(connection)
        except BaseException:
            engine.dispose()
            lock.release()
            raise
        return cls(engine, lock)

    def when_full(self, make_room: Callable[[], bool]) -> None:
        """Have ``make_room`` called when the disk is full; if it says true, the transaction is tried once more."""
        self._make_room = make_room

    async def run(self, work: Callable[[Session], T]) -> T:
        """Return what ``work`` returns, once its transaction is committed.

        ``work`` runs in the writer's thread and must do nothing but database
        work; if it raises, nothing of it is kept.

        Raises:
            HansaError: ``STORE_FULL``, nothing was kept; what ``work`` raises.
        """
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._writer, self._transact, work))

    def run_sync(self, work: Callable[[Session], T]) -> T:
        """Return what ``work`` returns, once its transaction is committed; blocks. For commands."""
        return self._writer.submit(self._transact, work).result()

    def _transact(self, work: Callable[[Session], T]) -> T:
        try:
            return self._once(work)
        except OperationalError as error:
            if not is_full(error.orig):
                raise
        try:
            if self._make_room():
                return self._once(work)
        except OperationalError as error:
            if not is_full(error.orig):
                raise
        raise HansaError(Reason.STORE_FULL)

    def _once(self, work: Callable[[Session], T]) -> T:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            return work(session)

    def close(self) -> None:
        """Finish what was begun, then close the file and give it free."""
        self._writer.shutdown(wait=True)
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()
