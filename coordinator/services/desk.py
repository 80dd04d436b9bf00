"""Transactions that change jobs, and who is told when one was committed.

Nobody polls: a commit rings the doorbells of the sessions, watchers and timers
that it concerns. A doorbell says only that there is something; what there is
stands in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from sqlalchemy.orm import Session

from coordinator.domain.frames import CommandBody
from coordinator.store.database import Database
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import Clock

T = TypeVar("T")

# Changes that wait for their turn, or have it; a few milliseconds each.
MOST_WAITING: Final = 500

# Makes the stored bytes of a command; the wire format is the api's business.
Encode = Callable[[CommandBody, datetime], bytes]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a transaction that changes jobs needs to know: the time, and how to write commands."""

    now: datetime
    encode: Encode


@dataclass(frozen=True, slots=True)
class Changed:
    """What a transaction has changed.

    ``jobs`` and ``outboxes`` name jobs, and nodes with new commands; ``due`` is
    a moment at which time alone may change a job; ``trust`` says that another
    directory is in force, and people may have lost what they had.
    """

    jobs: frozenset[str] = frozenset()
    outboxes: frozenset[str] = frozenset()
    due: datetime | None = None
    trust: bool = False

    def __or__(self, other: Changed) -> Changed:
        return Changed(
            self.jobs | other.jobs,
            self.outboxes | other.outboxes,
            earliest(self.due, other.due),
            self.trust or other.trust,
        )


def earliest(*moments: datetime | None) -> datetime | None:
    """Return the first of ``moments``; None stands for never."""
    return min((moment for moment in moments if moment is not None), default=None)


class Doorbells:
    """Events by job and by node, for the one event loop of the process."""

    def __init__(self) -> None:
        self._jobs: dict[str, set[asyncio.Event]] = {}
        self._nodes: dict[str, set[asyncio.Event]] = {}
        self._due: datetime | None = None
        self.closed = False
        self.timer = asyncio.Event()

    def ring(self, changed: Changed) -> None:
        """Wake everybody whom ``changed`` concerns."""
        for job_id in tuple(self._jobs) if changed.trust else changed.jobs:
            _set_all(self._jobs, job_id)
        for node in changed.outboxes:
            self.ring_node(node)
        if changed.due is not None:
            self._due = earliest(self._due, changed.due)
            self.timer.set()

    def close(self) -> None:
        """Wake all watchers for the last time: the process is about to end."""
        self.closed = True
        for job_id in tuple(self._jobs):
            _set_all(self._jobs, job_id)

    def take_due(self) -> datetime | None:
        """Return the first moment that became due since the last call, and forget it."""
        due, self._due = self._due, None
        self.timer.clear()
        return due

    def ring_node(self, node: str) -> None:
        """Wake the session of ``node``: it may send again."""
        _set_all(self._nodes, node)

    @contextmanager
    def of_job(self, job_id: str) -> Iterator[asyncio.Event]:
        """Hand out an event that is set after each change of the job."""
        with _listed(self._jobs, job_id) as bell:
            yield bell

    @contextmanager
    def of_node(self, node: str) -> Iterator[asyncio.Event]:
        """Hand out an event that is set after each command for the node."""
        with _listed(self._nodes, node) as bell:
            yield bell


def _set_all(bells: dict[str, set[asyncio.Event]], name: str) -> None:
    for bell in bells.get(name, ()):
        bell.set()


@contextmanager
def _listed(bells: dict[str, set[asyncio.Event]], name: str) -> Iterator[asyncio.Event]:
    bell = asyncio.Event()
    bells.setdefault(name, set()).add(bell)
    try:
        yield bell
    finally:
        bells[name].discard(bell)
        if not bells[name]:
            del bells[name]


class Desk:
    """Runs transactions and rings afterwards; made once, inside the event loop."""

    def __init__(self, database: Database, clock: Clock, encode: Encode) -> None:
        self.database = database
        self.clock = clock
        self.bells = Doorbells()
        self._encode = encode
        self._running: set[asyncio.Task[object]] = set()
        # Transactions that change jobs meet in the same outboxes. One after
        # the other they are quicker than four that undo each other, which is
        # what PostgreSQL makes of them; SQLite has one writer in any case.
        self._one_at_a_time = asyncio.Lock()

    def turn(self) -> Turn:
        """Return what a transaction that begins now needs to know."""
        return Turn(self.clock(), self._encode)

    def check_room(self) -> None:
        """Return if a change that may come again later should be begun now.

        Nodes' sessions do not ask: they are few, and wait for their turn.

        Raises:
            HansaError: ``OVERLOADED``; too many changes wait for their turn.
        """
        if len(self._running) >= MOST_WAITING:
            raise HansaError(Reason.OVERLOADED, log="transactions")

    async def read(self, work: Callable[[Session], T]) -> T:
        """Return ``work(session)``, which changes nothing that anybody waits for."""
        return await self.database.run(work)

    async def commit(self, work: Callable[[Session], tuple[T, Changed]]) -> T:
        """Run ``work`` in one transaction, then ring; return its first value.

        A caller that is cancelled meanwhile does not keep the others from
        being told: the transaction goes on in its thread in any case.
        """
        task = asyncio.get_running_loop().create_task(self._commit(work))
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def _commit(self, work: Callable[[Session], tuple[T, Changed]]) -> T:
        async with self._one_at_a_time:
            value, changed = await self.database.run(work)
        self.bells.ring(changed)
        return value

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Marks it as seen: whoever asked may be gone.
            task.exception()

    async def settled(self) -> None:
        """Return once no transaction runs any more; before the database is closed."""
        await asyncio.gather(*self._running, return_exceptions=True)
