"""How long it takes to recover: each fault of some kinds starts a clock of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from hansa.sdk.client import Client
from hansa.sdk.errors import RemoteError
from tests.support.nemesis_faults import Fault
from tests.support.nemesis_federation import NODES, Federation

_STEP_SECONDS: Final = 0.3
_LONGEST_SECONDS: Final = 300.0


@dataclass(slots=True)
class Stopwatch:
    """Measures into ``times``, by what is measured."""

    federation: Federation
    operator: Client
    times: dict[str, list[float]]
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, fault: Fault) -> None:
        """Start the clock that belongs to a fault, if one does."""
        if fault.kind == "kill coordinator":
            self._start(self._reattach(fault))
        elif fault.kind == "kill run pool":
            for run, execution in fault.hit:
                self._start(self._execute_again(fault, run, execution))
        elif fault.kind.startswith("partition") or fault.kind == "unplug":
            self._start(self._notice(fault))

    def _start(self, measure: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(measure)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Forget what is still being measured."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note(self, what: str, seconds: float) -> None:
        self.times.setdefault(what, []).append(seconds)

    async def connected(self) -> set[str] | None:
        """Return the nodes that the coordinator calls connected; None if it does not answer."""
        with suppress(RemoteError):
            return {one.node for one in await self.operator.catalogue.nodes() if one.connected}
        return None

    async def _reattach(self, fault: Fault) -> None:
        """From the coordinator's death, and from when it listens again, until every node is connected again."""
        if not await self.federation.listening(fault.pids, _LONGEST_SECONDS):
            return
        listens = time.monotonic()
        while time.monotonic() - listens < _LONGEST_SECONDS:
            if await self.connected() == set(NODES):
                self._note("coordinator killed to all nodes attached", time.monotonic() - fault.when)
                self._note("coordinator listens to all nodes attached", time.monotonic() - listens)
                return
            await asyncio.sleep(_STEP_SECONDS)

    async def _notice(self, fault: Fault) -> None:
        """From the cut of a node's wire until the coordinator says that it is not connected; if it lasts so long."""
        was_connected = False
        while time.monotonic() - fault.when < fault.seconds:
            connected = await self.connected()
            if connected is not None and fault.at in connected:
                was_connected = True
            elif connected is not None and was_connected:
                self._note("partition noticed", time.monotonic() - fault.when)
                return
            await asyncio.sleep(_STEP_SECONDS)

    async def _execute_again(self, fault: Fault, run: str, execution: int) -> None:
        """From the death of a run's pool until a later execution has processes; if the run needs one."""
        while time.monotonic() - fault.when < _LONGEST_SECONDS:
            if any(one == run and number > execution for one, number in self.federation.executions(fault.at)):
                self._note("pool of runs killed to its run executing again", time.monotonic() - fault.when)
                return
            await asyncio.sleep(_STEP_SECONDS)
