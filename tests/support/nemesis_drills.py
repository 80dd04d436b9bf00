"""How long recovery takes when one thing breaks and nothing else: the figures that docs/reliability.md promises."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.support.nemesis_federation import NODES, Federation, Part
from tests.support.nemesis_processes import kill
from tests.support.nemesis_times import Stopwatch
from tests.support.nemesis_work import Asked, Workload, measured
from tests.support.nemesis_world import Cut

_MOST_SECONDS: Final = 300.0
_REST_SECONDS: Final = 2.0


@dataclass(slots=True)
class Drills:
    """Breaks one thing after the other, and waits each time until all is well."""

    federation: Federation
    workload: Workload
    stopwatch: Stopwatch
    random: random.Random
    say: Callable[[str], None]

    async def run(self, times: int) -> None:
        """Do every drill ``times`` times."""
        for _ in range(times):
            for name, drill in {
                "coordinator restarted to all nodes attached": self._restart_coordinator,
                "wire cut to shown as away": self._cut_wire,
                "pool of runs killed to executing again": self._kill_pool,
                "cancelled to no process left": self._cancel,
            }.items():
                seconds = await drill()
                if seconds is not None:
                    self.workload.times.setdefault(f"alone: {name}", []).append(seconds)
                self.say(f"drill: {name}: {'not measured' if seconds is None else f'{seconds:.1f} s'}")
                await asyncio.sleep(_REST_SECONDS)

    async def _restart_coordinator(self) -> float | None:
        """From the moment when the restarted coordinator listens."""
        old = self.federation.processes(Part("coordinator"))
        for process in old:
            kill(process)
        await self.federation.listening([process.pid for process in old], _MOST_SECONDS)
        return await self._until(lambda connected: connected == set(NODES))

    async def _cut_wire(self) -> float | None:
        node = self.random.choice(NODES)
        self.federation.network.cut(node, Cut.BOTH)
        try:
            noticed = await self._until(lambda connected: node not in connected)
        finally:
            self.federation.network.mend(node)
        await self._until(lambda connected: connected == set(NODES))
        return noticed

    async def _until(self, right: Callable[[set[str]], bool]) -> float | None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() - begun < _MOST_SECONDS:
            connected = await self.stopwatch.connected()
            if connected is not None and right(connected):
                return loop.time() - begun
            await asyncio.sleep(0.1)
        return None

    async def _kill_pool(self) -> float | None:
        """From the death of the pool that runs a job until a later execution of the run has processes."""
        node = self.random.choice(NODES)
        asked, work = self._long_job(node)
        try:
            await measured(lambda: bool(self.federation.executions(node)) or asked.ended is not None, _MOST_SECONDS)
            before = self.federation.executions(node)
            for process in self.federation.processes(Part("run pool", node)):
                kill(process)
            highest = max((number for _, number in before), default=0)
            return await measured(
                lambda: any(number > highest for _, number in self.federation.executions(node)), _MOST_SECONDS
            )
        finally:
            await work

    async def _cancel(self) -> float | None:
        """From the cancelled call's answer until no process of the job's runs is left at any node."""
        asked, work = self._long_job(*NODES)
        await measured(
            lambda: all(self.federation.executions(node) for node in NODES) or asked.ended is not None, _MOST_SECONDS
        )
        await self.workload.client.jobs.cancel(asked.job_id)
        took = await measured(lambda: not any(self.federation.run_processes(run) for run in asked.seen), _MOST_SECONDS)
        await work
        return took

    def _long_job(self, *nodes: str) -> tuple[Asked, asyncio.Task[None]]:
        return self.workload.ask_long(nodes)
