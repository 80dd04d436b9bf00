"""Crash points around every transaction, and stores that have them.

A store of a daemon is wrapped where the daemon is composed. The wrapper names
each transaction by the function that it runs, and dies at the one that a
``Plan`` has armed: before the work, before the commit, or after the commit and
before anybody hears of it. How a process dies is its ``Life``'s business.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session

from coordinator.store.database import Database as CoordinatorDatabase
from node_agent.store.database import Database as NodeDatabase
from tests.support.crash_catalogue import lambda_name

T = TypeVar("T")
Work = Callable[[Session], T]

_WRITES: Final = ("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "ALTER", "DROP")


class Phase(StrEnum):
    """Where around a transaction a process dies."""

    BEFORE = "before-work"
    UNCOMMITTED = "before-commit"
    COMMITTED = "after-commit"


class Undone(BaseException):
    """Undoes the transaction of a process that dies before its commit."""


class Gone(Exception):
    """What is asked of the store of a process that is dead."""


class Life(Protocol):
    """One process, from its start to its death."""

    def has_ended(self) -> bool:
        """Say whether it has died: nothing of it may reach the store any more."""

    def end(self) -> None:
        """Die, here and now; called in any thread."""

    async def nothing_more(self) -> Any:
        """Never go on: the process is dead."""


@dataclass
class Plan:
    """What is armed, and what was seen; outlives the processes."""

    name: str = ""
    phase: Phase = Phase.BEFORE
    passes: int = 0
    fired: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    wrote: Counter[str] = field(default_factory=Counter)

    def arm(self, name: str, phase: Phase, *, nth: int = 1) -> None:
        """Die at the ``nth`` time from now that the point is reached."""
        self.name, self.phase, self.passes, self.fired = name, phase, nth - 1, 0

    def disarm(self) -> None:
        """Let everybody live."""
        self.name = ""

    def strikes(self, name: str, phase: Phase) -> bool:
        """Say whether the process has to die here; it does so once."""
        if (name, phase) != (self.name, self.phase):
            return False
        if self.passes:
            self.passes -= 1
            return False
        self.name, self.fired = "", self.fired + 1
        return True


def name_of(work: Callable[..., Any]) -> str:
    """Return the name of the transaction that runs ``work``, as ``crash_catalogue`` has it."""
    if isinstance(work, functools.partial):
        return name_of(work.func)
    code = work.__code__
    if "work" in code.co_freevars and code.co_name == "once":
        # Of Calls: whatever the call is, it is answered once.
        closure = dict(zip(code.co_freevars, work.__closure__ or (), strict=True))
        return name_of(closure["work"].cell_contents)
    if code.co_name == "<lambda>":
        return lambda_name(work.__module__, code.co_firstlineno)
    return f"{work.__module__}.{work.__qualname__}".replace(".<locals>", "")


@dataclass
class _Outcome:
    wrote: bool = False


class _Transactions:
    """The three phases around one store's transactions."""

    def __init__(self, plan: Plan, life: Life) -> None:
        self._plan, self._life = plan, life

    def before(self, name: str) -> bool:
        """Return whether the process is dead before the work begins."""
        self._plan.seen[name] += 1
        if not self._life.has_ended() and self._plan.strikes(name, Phase.BEFORE):
            self._life.end()
        return self._life.has_ended()

    def around(self, name: str, work: Work[T], outcome: _Outcome) -> Work[T]:
        """Return ``work`` with a death before its commit, and note in ``outcome`` whether it writes."""

        def observed(session: Session) -> T:
            if self._life.has_ended():
                raise Undone
            statements: list[str] = []
            connection = session.connection()
            event.listen(connection, "before_cursor_execute", lambda *told: statements.append(told[2]))
            value = work(session)
            session.flush()
            outcome.wrote = any(text.lstrip()[:7].upper().startswith(_WRITES) for text in statements)
            self._plan.wrote[name] += outcome.wrote
            if self._life.has_ended() or (outcome.wrote and self._plan.strikes(name, Phase.UNCOMMITTED)):
                self._life.end()
                raise Undone
            return value

        return observed

    def after(self, name: str, outcome: _Outcome) -> bool:
        """Return whether the process is dead after the commit; one that commits nothing is no place to die."""
        if not self._life.has_ended() and outcome.wrote and self._plan.strikes(name, Phase.COMMITTED):
            self._life.end()
        return self._life.has_ended()

    async def run(self, run: Callable[[Work[T]], Any], work: Work[T]) -> T:
        """Run ``work`` through ``run``; a dead process hears nothing of it."""
        name, outcome = name_of(work), _Outcome()
        if self.before(name):
            return await self._life.nothing_more()  # type: ignore[no-any-return]
        try:
            value: T = await run(self.around(name, work, outcome))
        except Undone:
            return await self._life.nothing_more()  # type: ignore[no-any-return]
        return value if not self.after(name, outcome) else await self._life.nothing_more()

    def run_sync(self, run: Callable[[Work[T]], T], work: Work[T]) -> T:
        """Run ``work`` through ``run``; a dead process raises."""
        name, outcome = name_of(work), _Outcome()
        if self.before(name):
            raise Gone
        try:
            value = run(self.around(name, work, outcome))
        except Undone:
            raise Gone from None
        if self.after(name, outcome):
            raise Gone
        return value


class CrashingNodeStore(NodeDatabase):
    """A node's store whose process may die at any transaction."""

    def __init__(self, inner: NodeDatabase, plan: Plan, life: Life) -> None:
        """Wrap an open store."""
        self.inner = inner
        self._transactions = _Transactions(plan, life)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def run(self, work: Work[T]) -> T:
        return await self._transactions.run(self.inner.run, work)

    def close(self) -> None:
        self.inner.close()


class CrashingCoordinatorStore(CoordinatorDatabase):
    """A coordinator's store whose process may die at any transaction."""

    def __init__(self, inner: CoordinatorDatabase, plan: Plan, life: Life) -> None:
        """Wrap an open store."""
        self.inner = inner
        self._transactions = _Transactions(plan, life)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def run(self, work: Work[T]) -> T:
        return await self._transactions.run(self.inner.run, work)

    def run_sync(self, work: Work[T]) -> T:
        return self._transactions.run_sync(self.inner.run_sync, work)

    def close(self) -> None:
        self.inner.close()
