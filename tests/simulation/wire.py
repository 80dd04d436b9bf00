"""Streams between nodes and the coordinator that lose, double, delay and mix up what is sent.

A stream that lost a frame breaks soon after; until then later frames still
arrive. Frames of a stream that is over may arrive late, at a process that has
another stream by now.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tests.simulation.world import World

_QUICK = (0.01, 0.2)
_LATE = (1.0, 30.0)


class End(Protocol):
    """A process at one end of streams."""

    up: bool

    def receive(self, stream: Stream, frame: Any) -> None:
        """Take a frame."""

    def ended(self, stream: Stream) -> None:
        """Take note that the stream is over."""


class Stream:
    """One stream between a node and the coordinator."""

    def __init__(self, world: World, node: str, ends: tuple[End, End]) -> None:
        """Open it between the ends ``(node, coordinator)``."""
        self.world, self.node, self.ends = world, node, ends
        self.open = True
        self.cut_off = False
        self._last = {id(end): 0.0 for end in ends}

    def send(self, to: End, frame: Any) -> None:
        """Send ``frame``; in order, unless something goes wrong."""
        world = self.world
        if not self.open or self.cut_off:
            return
        if world.fault("frame dropped", world.odds.drop):
            world.after(world.random.uniform(0.0, 5.0), self.close)
            return
        due = max(world.seconds + world.random.uniform(*_QUICK), self._last[id(to)] + 0.001)
        if world.fault("frame late and out of order", world.odds.late):
            due = world.seconds + world.random.uniform(*_LATE)
        else:
            self._last[id(to)] = due
        world.after(due - world.seconds, lambda: self._deliver(to, frame))
        if world.fault("frame doubled", world.odds.duplicate):
            again = world.random.uniform(*(_QUICK if world.random.random() < 0.5 else _LATE))
            world.after(due - world.seconds + again, lambda: self._deliver(to, frame))

    def _deliver(self, to: End, frame: Any) -> None:
        if to.up and not self.cut_off:
            to.receive(self, frame)

    def close(self) -> None:
        """End the stream; each side notices after a while, a cut-off one only by silence."""
        if not self.open:
            return
        self.open = False
        longest = 30.0 if self.cut_off else 2.0
        for end in self.ends:
            self.world.after(self.world.random.uniform(0.0, longest), partial(self._tell, end))

    def _tell(self, end: End) -> None:
        if end.up:
            end.ended(self)


def call(world: World, to: End, what: Callable[[], Any], answer: Callable[[Any], None]) -> None:
    """Make a call that may be lost, made twice, or whose answer may be lost."""

    def arrive() -> None:
        if not to.up:
            return
        found = what()
        if found is not None and not world.fault("answer lost", world.odds.drop):
            world.after(world.random.uniform(*_QUICK), lambda: answer(found))

    if world.fault("call lost", world.odds.drop):
        return
    world.after(world.random.uniform(*_QUICK), arrive)
    if world.fault("call made twice", world.odds.duplicate):
        world.after(world.random.uniform(*_LATE), arrive)
