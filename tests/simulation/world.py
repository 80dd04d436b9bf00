"""Virtual time, seeded chance, and what goes wrong: the ground on which the simulated processes stand."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from tests.simulation.rules import Rules

START = datetime(2026, 3, 1, 12, tzinfo=UTC)

S = TypeVar("S")
T = TypeVar("T")


class Violation(AssertionError):
    """A promise was broken; says which, and how to see it again."""


class Crash(Exception):
    """The process that runs dies here; nothing after it is executed."""


@dataclass(frozen=True)
class Odds:
    """How often something goes wrong where it can: per frame, per transaction, per second."""

    drop: float = 0.04
    duplicate: float = 0.05
    late: float = 0.05
    crash_before: float = 0.012
    crash_after: float = 0.012
    # Each second, of each store; and how many of them by hand.
    restore: float = 0.006
    by_hand: float = 0.25


class World:
    """The clock, the dice and the heap of what is to happen; one per seed."""

    def __init__(self, seed: int, rules: Rules | None = None, odds: Odds | None = None) -> None:
        """Begin at ``START`` with nothing to do."""
        self.seed = seed
        self.rules = rules or Rules()
        self.odds = odds or Odds()
        self.random = random.Random(seed)
        self.seconds = 0.0
        self.steps = 0
        self.faults: Counter[str] = Counter()
        self.stormy = False
        self.after_step: Callable[[], None] = lambda: None
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()
        self._fresh = itertools.count(1)

    @property
    def now(self) -> datetime:
        """The true time; processes have clocks of their own."""
        return START + timedelta(seconds=self.seconds)

    def after(self, delay: float, what: Callable[[], None]) -> None:
        """Do ``what`` after ``delay`` seconds."""
        heapq.heappush(self._heap, (self.seconds + delay, next(self._ticket), what))

    def every(self, period: float, what: Callable[[], None]) -> None:
        """Do ``what`` again and again, a little irregularly."""

        def again() -> None:
            self.after(period * (0.8 + 0.4 * self.random.random()), again)
            what()

        self.after(period * self.random.random(), again)

    def run_until(self, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until ``seconds``, or until ``done`` says so, asked once a virtual second."""
        asked = self.seconds
        while self._heap and self._heap[0][0] <= seconds:
            self.seconds, _, what = heapq.heappop(self._heap)
            self.steps += 1
            what()
            self.after_step()
            if self.seconds - asked >= 1.0:
                asked = self.seconds
                if done():
                    return
        self.seconds = max(self.seconds, seconds)

    def fault(self, kind: str, chance: float = 1.0) -> bool:
        """Say whether ``kind`` goes wrong now, and count it if it does."""
        if not self.stormy or self.random.random() >= chance:
            return False
        self.faults[kind] += 1
        return True

    def fresh(self, kind: str) -> str:
        """Return a name, or bytes' text, that was never there before."""
        return f"{kind}-{next(self._fresh)}"

    def broken(self, promise: str, detail: str = "") -> None:
        """Report that a promise was broken.

        Raises:
            Violation: always.
        """
        raise Violation(
            f"{promise}: {detail}\n  seed {self.seed}, step {self.steps}, {self.seconds:.3f} s of virtual time\n"
            f"  again: .venv/bin/python -m tests.simulation --seed {self.seed}"
        )


class Store(Generic[S]):
    """A transactional store: what is committed survives its process, and may be put back to what it was."""

    def __init__(self, world: World, state: S) -> None:
        """Take the first state."""
        self._world = world
        self.state = state
        self._backups: list[tuple[float, S]] = []

    def transact(self, work: Callable[[S], T]) -> T:
        """Return what ``work`` returns once it is committed; it checks before it writes.

        Raises:
            Crash: before anything was written, or after the commit.
        """
        odds = self._world.odds
        if self._world.fault("crash before commit", odds.crash_before):
            raise Crash
        result = work(self.state)
        if self._world.fault("crash after commit", odds.crash_after):
            raise Crash
        return result

    def back_up(self) -> None:
        """Keep a copy of the present state; the last three are kept."""
        self._backups = [*self._backups[-2:], (self._world.seconds, deepcopy(self.state))]

    def restore(self) -> bool:
        """Put the store back to one of its backups that is not too old; say whether there was one."""
        # What peers have pruned since cannot be asked for again: backups are younger than that.
        oldest = self._world.seconds - self._world.rules.keep.total_seconds() / 2
        usable = [state for at, state in self._backups if at >= oldest]
        if usable:
            self.state = deepcopy(self._world.random.choice(usable))
        return bool(usable)

    def forget_backups(self) -> None:
        """Drop all backups."""
        self._backups.clear()
