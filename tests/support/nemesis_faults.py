"""The nemesis: every second or two something is done to the federation that it has to bear.

What is picked comes from a seed. What has a length (a freeze, a cut wire, a
full disk) is undone in its own time, so that faults overlap.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.local.processes import Process, wait_until
from tests.support.nemesis_federation import (
    BYTES,
    FRAMES,
    NODE_PARTS,
    NODES,
    Federation,
    Part,
)
from tests.support.nemesis_processes import kill
from tests.support.nemesis_services import RabbitMqService
from tests.support.nemesis_world import Cut

# What is left of a full file system: nothing.
_BALLAST: Final = ".ballast"
_BLOCK: Final = 1 << 20
_AT_ONCE: Final = 3
# How far a clock jumps, in seconds: little, beyond what is borne, a day.
_STEPS: Final = (20, 400, 86_400)
_DEATH_SECONDS: Final = 10.0


# Every kind of fault, and how often it is picked beside the others.
KINDS: Final[Mapping[str, int]] = {
    "kill": 8,
    "freeze": 4,
    "partition": 3,
    "unplug": 1,
    "bytes delayed": 1,
    "bytes cut": 1,
    "bytes corrupted": 1,
    "frames repeated": 1,
    "frames swapped": 1,
    "frames delayed": 1,
    "disk full": 2,
    "broker emptied": 1,
    "clock stepped": 2,
}


@dataclass(frozen=True, slots=True)
class Wish:
    """How bad it may get: how long a freeze and a cut may last, in seconds, and which kinds there are."""

    freeze: tuple[float, float] = (3.0, 10.0)
    cut: tuple[float, float] = (3.0, 10.0)
    full: tuple[float, float] = (2.0, 6.0)
    pause: tuple[float, float] = (1.0, 2.0)
    kinds: frozenset[str] = frozenset()
    # Kinds of processes that nothing is done to.
    spared: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that was done, when, and for how long (0: at once).

    ``pids`` are the processes that were killed; ``hit`` the executions that had
    processes at the node just before.
    """

    kind: str
    at: str
    when: float
    seconds: float = 0.0
    pids: tuple[int, ...] = ()
    hit: frozenset[tuple[str, int]] = frozenset()


Strike = Callable[[], Awaitable[bool]]


@dataclass(slots=True)
class Nemesis:
    """Picks faults and does them. ``done`` is what was really done."""

    federation: Federation
    random: random.Random
    wish: Wish = field(default_factory=Wish)
    done: list[Fault] = field(default_factory=list)
    say: Callable[[Fault], None] = lambda _fault: None
    _lasting: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def _strikes(self) -> dict[str, Strike]:
        return {
            "kill": self._kill,
            "freeze": self._freeze,
            "partition": self._partition,
            "unplug": self._unplug,
            "bytes delayed": self._bytes_delayed,
            "bytes cut": self._bytes_cut,
            "bytes corrupted": self._bytes_corrupted,
            "frames repeated": self._frames_repeated,
            "frames swapped": self._frames_swapped,
            "frames delayed": self._frames_delayed,
            "disk full": self._disk_full,
            "broker emptied": self._broker_emptied,
            "clock stepped": self._clock_stepped,
        }

    async def strike(self, count: int) -> None:
        """Do ``count`` faults."""
        names = [name for name in KINDS if name in (self.wish.kinds or KINDS)]
        if self.federation.clocks is None and "clock stepped" in names:
            names.remove("clock stepped")
        if "broker" in self.wish.spared and "broker emptied" in names:
            names.remove("broker emptied")
        strikes, weights = self._strikes(), [KINDS[name] for name in names]
        begun = len(self.done)
        while len(self.done) < begun + count:
            (name,) = self.random.choices(names, weights)
            if await strikes[name]():
                await asyncio.sleep(self.random.uniform(*self.wish.pause))
            else:
                # Nothing of that kind is there to be broken just now.
                await asyncio.sleep(0.05)

    async def heal(self) -> None:
        """Undo whatever lasts."""
        for task in self._lasting.values():
            task.cancel()
        await asyncio.gather(*self._lasting.values(), return_exceptions=True)
        self._lasting.clear()
        if self.federation.frame_proxy is not None:
            self.federation.frame_proxy.repeat = self.federation.frame_proxy.swap = 0

    def counted(self) -> Counter[str]:
        """Return how many faults of each kind were done."""
        return Counter(fault.kind for fault in self.done)

    def _did(self, kind: str, at: str, seconds: float = 0.0) -> bool:
        return self._note(Fault(kind, at, time.monotonic(), seconds))

    def _note(self, fault: Fault) -> bool:
        self.done.append(fault)
        self.say(fault)
        return True

    def _lasts(self, key: str, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> bool:
        """Begin something that ends by itself; return whether it was begun: not twice, not too much at once."""
        if key in self._lasting or len(self._lasting) >= _AT_ONCE:
            return False
        begin()

        async def last() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                end()
                self._lasting.pop(key, None)

        self._lasting[key] = asyncio.create_task(last())
        return True

    # --- processes ------------------------------------------------------------------

    def _some_part(self) -> Part:
        central = ("coordinator", *(service.name for service in self.federation.services))
        kind = self.random.choice([one for one in (*central, *NODE_PARTS) if one not in self.wish.spared])
        return Part(kind) if kind in central else Part(kind, self.random.choice(NODES))

    def _some_process(self) -> tuple[Part, Process] | None:
        part = self._some_part()
        found = sorted(self.federation.processes(part), key=lambda process: process.pid)
        return (part, self.random.choice(found)) if found else None

    async def _kill(self) -> bool:
        found = self._some_process()
        if found is None:
            return False
        part, process = found
        hit = frozenset(self.federation.executions(part.node)) if part.node else frozenset()
        kill(process)
        at = part.node or part.kind
        return self._note(Fault(f"kill {part.kind}", at, time.monotonic(), pids=(process.pid,), hit=hit))

    async def _freeze(self) -> bool:
        found = self._some_process()
        if found is None:
            return False
        part, process = found
        seconds = self.random.uniform(*self.wish.freeze)
        return self._lasts(
            f"freeze {process.pid}",
            seconds,
            lambda: process.signal(signal.SIGSTOP),
            lambda: process.signal(signal.SIGCONT),
        ) and self._did(f"freeze {part.kind}", part.node or part.kind, seconds)

    # --- wires ----------------------------------------------------------------------

    async def _partition(self) -> bool:
        node, way, network = self.random.choice(NODES), self.random.choice(list(Cut)), self.federation.network
        seconds = self.random.uniform(*self.wish.cut)
        return self._lasts(
            f"wire {node}", seconds, lambda: network.cut(node, way), lambda: network.mend(node)
        ) and self._did(f"partition {way}", node, seconds)

    async def _unplug(self) -> bool:
        node, network = self.random.choice(NODES), self.federation.network
        seconds = self.random.uniform(*self.wish.cut)
        return self._lasts(
            f"wire {node}", seconds, lambda: network.unplug(node), lambda: network.plug(node)
        ) and self._did("unplug", node, seconds)

    async def _bytes_delayed(self) -> bool:
        proxy, seconds = self.federation.bytes_proxy, self.random.uniform(*self.wish.cut)
        assert proxy is not None

        def delay(value: float) -> None:
            proxy.delay = value

        return self._lasts(
            "delay of bytes", seconds, lambda: delay(self.random.uniform(0.05, 1.0)), lambda: delay(0.0)
        ) and self._did("bytes delayed", BYTES, seconds)

    async def _bytes_cut(self) -> bool:
        assert self.federation.bytes_proxy is not None
        self.federation.bytes_proxy.cut += 1
        return self._did("bytes cut", BYTES)

    async def _bytes_corrupted(self) -> bool:
        assert self.federation.bytes_proxy is not None
        self.federation.bytes_proxy.corrupt += 1
        return self._did("bytes corrupted", BYTES)

    async def _frames_repeated(self) -> bool:
        assert self.federation.frame_proxy is not None
        self.federation.frame_proxy.repeat = self.random.randint(1, 8)
        return self._did("frames repeated", FRAMES)

    async def _frames_swapped(self) -> bool:
        assert self.federation.frame_proxy is not None
        self.federation.frame_proxy.swap = self.random.randint(1, 3)
        return self._did("frames swapped", FRAMES)

    async def _frames_delayed(self) -> bool:
        proxy, seconds = self.federation.frame_proxy, self.random.uniform(*self.wish.cut)
        assert proxy is not None

        def delay(value: float) -> None:
            proxy.delay = value

        return self._lasts(
            "delay of frames", seconds, lambda: delay(self.random.uniform(0.05, 1.0)), lambda: delay(0.0)
        ) and self._did("frames delayed", FRAMES, seconds)

    async def _clock_stepped(self) -> bool:
        clocks = self.federation.clocks
        assert clocks is not None
        machine = self.random.choice(("coordinator", *NODES))
        step, seconds = self.random.choice(_STEPS) * self.random.choice((1, -1)), self.random.uniform(*self.wish.cut)
        return self._lasts(
            f"clock {machine}", seconds, lambda: clocks.set(machine, step), lambda: clocks.set(machine, 0)
        ) and self._did("clock stepped", f"{machine} by {step} s", seconds)

    # --- stores -----------------------------------------------------------------------

    async def _disk_full(self) -> bool:
        at = self.random.choice(("coordinator", *NODES))
        layout = self.federation.layout
        folder = layout.coordinator_state if at == "coordinator" else layout.node(at).state
        seconds = self.random.uniform(*self.wish.full)
        ballast = folder / _BALLAST
        return self._lasts(
            f"disk {at}", seconds, lambda: fill(ballast), lambda: ballast.unlink(missing_ok=True)
        ) and self._did(f"disk full {'coordinator' if at == 'coordinator' else 'node'}", at, seconds)

    async def _broker_emptied(self) -> bool:
        if self.federation.rabbit is not None:
            return await self._rabbit_emptied(self.federation.rabbit)
        node = self.random.choice(NODES)
        part = Part("broker", node)
        for process in self.federation.processes(part):
            kill(process)
        folder = self.federation.layout.node(node).state / "broker"
        shutil.rmtree(folder / "appendonlydir", ignore_errors=True)
        return self._did("broker emptied", node)

    async def _rabbit_emptied(self, rabbit: RabbitMqService) -> bool:
        for process in rabbit.processes():
            kill(process)
        await asyncio.to_thread(wait_until, lambda: not rabbit.running(), _DEATH_SECONDS)
        rabbit.forget()
        return self._did("broker emptied", "all nodes")


def fill(ballast: Path) -> None:
    """Fill the file system of ``ballast`` to the last byte."""
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (_BLOCK, 4096, 1):
            block = b"\0" * size
            with suppress(OSError):
                while os.write(descriptor, block):
                    pass
    finally:
        os.close(descriptor)
