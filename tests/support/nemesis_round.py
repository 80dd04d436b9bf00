"""A round: faults while people work, then everything is healed, comes to its end, is stopped, and is checked."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.local.cast import OPERATOR, RESEARCHER
from hansa.contract.errors import HansaError
from hansa.contract.states import RUN_TERMINAL, JobState
from hansa.sdk.client import Client, connect
from hansa.sdk.errors import RemoteError
from tests.support.demo_oracle import Truth, truth
from tests.support.nemesis_check import EVENTUAL, Evidence, verdicts
from tests.support.nemesis_drills import Drills
from tests.support.nemesis_evidence import (
    MARGIN_SECONDS,
    examine_results,
    look_everywhere,
    read_stores,
    seen_jobs,
)
from tests.support.nemesis_faults import Fault, Nemesis, Wish
from tests.support.nemesis_federation import NODES, Federation
from tests.support.nemesis_report import Report
from tests.support.nemesis_times import Stopwatch
from tests.support.nemesis_work import Plan, Workload
from tests.support.postgres import Postgres

_CONNECT_SECONDS: Final = 120.0
_SETTLE_SECONDS: Final = 120.0
_STEP_SECONDS: Final = 0.5
# Uploads, cosignatures and the events that tell of them follow the last run's end by two heartbeats.
_ECHO_SECONDS: Final = 12.0
_LOOKS: Final = 6


@dataclass(slots=True)
class Arena:
    """The federation, who works with it and who breaks it."""

    federation: Federation
    data: Path
    truths: dict[str, dict[str, Truth]]
    plan: Plan = field(default_factory=Plan)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _workload: Workload | None = None
    _nemesis: Nemesis | None = None
    _operator: Client | None = None
    _stopwatch: Stopwatch | None = None
    # Jobs whose results were held against evidence and oracle in an earlier round.
    _examined: set[str] = field(default_factory=set)

    @classmethod
    def build(cls, root: Path, data: Path, seed: int, *, postgres: Postgres | None, rabbit: bool) -> Arena:
        """Make the federation."""
        truths = {node: truth(data / node / "aisnp.vcf.gz", data / node / "samples.tsv") for node in NODES}
        return cls(Federation.build(root, data, seed, postgres=postgres, rabbit=rabbit), data, truths)

    async def open(self, draw: random.Random, wish: Wish, say: Callable[[str], None]) -> None:
        """Start everything and wait until all nodes are connected."""
        await self.federation.start()
        researcher = await self._connect(RESEARCHER)
        self._operator = await self._connect(OPERATOR)
        await self._until_connected()
        passing = [rsid for rsid in self.truths[NODES[0]] if all(self.truths[n][rsid].everybody.passes for n in NODES)]
        self._workload = Workload(
            self.federation, researcher, passing, random.Random(draw.random()), self.plan, say=say
        )
        self._stopwatch = Stopwatch(self.federation, self._operator, self._workload.times)
        self._nemesis = Nemesis(self.federation, random.Random(draw.random()), wish, say=self._told(say))
        await self._workload.prepare()

    def _told(self, say: Callable[[str], None]) -> Callable[[Fault], None]:
        def told(fault: Fault) -> None:
            say(f"{fault.kind}: {fault.at}{f' for {fault.seconds:.1f} s' if fault.seconds else ''}")
            if self._stopwatch is not None:
                self._stopwatch.begin(fault)

        return told

    async def _connect(self, person: str) -> Client:
        profile = self.federation.profile(person)
        until = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                return await self._stack.enter_async_context(connect(profile))
            except RemoteError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_STEP_SECONDS)

    async def _until_connected(self) -> list[str]:
        """Wait until every node is connected; return those that are not."""
        assert self._operator is not None
        until, missing = time.monotonic() + _CONNECT_SECONDS, set(NODES)
        while missing and time.monotonic() < until:
            with suppress(RemoteError):
                missing = set(NODES) - {one.node for one in await self._operator.catalogue.nodes() if one.connected}
            await asyncio.sleep(_STEP_SECONDS)
        return sorted(missing)

    async def round(self, count: int, report: Report, drills: int = 0) -> None:
        """Do ``count`` faults, heal, wait, check, and take all of it into ``report``; with ``drills`` before the check."""
        assert self._workload is not None
        assert self._nemesis is not None
        assert self._stopwatch is not None
        self.federation.start_daemons()
        await self._until_connected()
        watch = asyncio.create_task(self.federation.watch_over())
        work = asyncio.create_task(self._workload.run())
        try:
            await self._nemesis.strike(count)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._nemesis.heal()
        clocks = self.federation.clocks
        evidence = Evidence(hurried=clocks is not None and "coordinator" in clocks.hurried)
        try:
            await self._stopwatch.stop()
            await self._until_connected()
            if drills:
                await self._drill(drills)
            await self._come_to_rest(evidence)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await asyncio.to_thread(self.federation.stop_daemons)
        await self._look(evidence)
        self._tally(evidence, report)

    async def _drill(self, times: int) -> None:
        """Measure recovery, once the round's own jobs have ended."""
        assert self._workload is not None
        assert self._stopwatch is not None
        await self._workload.finish(self.plan.lifetime.total_seconds())
        draw = self._workload.random
        await Drills(self.federation, self._workload, self._stopwatch, draw, self._workload.say).run(times)

    async def _come_to_rest(self, evidence: Evidence) -> None:
        """Let everything come to its end; prove what came of it while the federation lives."""
        workload = self._workload
        assert workload is not None
        missing = await self._until_connected()
        evidence.unhealed += [f"node {node} does not connect" for node in missing]
        open_ = [one for one in workload.asked.values() if one.ended is None and one.accepted is not False]
        left = [one.submitted + one.lifetime + MARGIN_SECONDS - time.monotonic() for one in open_]
        await workload.finish(max(left, default=0.0) + _STEP_SECONDS)
        evidence.unhealed += await self._probe()
        await self._until_settled()
        evidence.left_over, evidence.mistakes = list(workload.left_over), list(workload.mistakes)
        new = [asked for job, asked in workload.asked.items() if job not in self._examined]
        await examine_results(workload.client, new, self.truths, evidence)
        self._examined |= {asked.job_id for asked in new if asked.ended is not None}
        evidence.jobs = seen_jobs(workload)

    async def _probe(self) -> list[str]:
        """Ask one more job, of all nodes; return how it ended unless it completed."""
        assert self._workload is not None
        probe = await self._workload.probe()
        return [] if probe.state == JobState.COMPLETED else [f"job {probe.job_id}: {probe.state or probe.refused}"]

    async def _until_settled(self) -> None:
        """Wait until the nodes have nothing more to send, as far as they say; what is not so then shows in the check."""
        until = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < until:
            if all([await asyncio.to_thread(self._at_rest, node) for node in NODES]):
                break
            await asyncio.sleep(_STEP_SECONDS)
        await asyncio.sleep(_ECHO_SECONDS)

    def _at_rest(self, node: str) -> bool:
        try:
            return all(run["state"] in RUN_TERMINAL for run in self.federation.agent(node).runs())
        except HansaError:
            return False

    async def _look(self, evidence: Evidence) -> None:
        """Read the stores of the stopped federation; while the sides do not agree yet, let it live a little longer."""
        for _ in range(_LOOKS):
            await asyncio.to_thread(read_stores, self.federation, evidence)
            if not any(check(evidence) for check in EVENTUAL):
                break
            self.federation.start_daemons()
            await self._until_connected()
            await asyncio.sleep(_ECHO_SECONDS)
            await asyncio.to_thread(self.federation.stop_daemons)
        await asyncio.to_thread(look_everywhere, self.federation, self.data, evidence)

    def _tally(self, evidence: Evidence, report: Report) -> None:
        assert self._nemesis is not None
        assert self._workload is not None
        report.rounds += 1
        report.faults = self._nemesis.counted()
        report.jobs.clear()
        report.jobs.update(evidence.coordinator.jobs.values())
        report.runs.clear()
        for node in evidence.nodes.values():
            report.runs.update(run.state for run in node.runs.values())
        report.executions = sum(
            action == "execution_started" for node in evidence.nodes.values() for action, _ in node.log
        )
        report.restarts = self.federation.restarts
        report.times = self._workload.times
        report.add(verdicts(evidence))

    async def close(self) -> None:
        """Take everything down."""
        with suppress(Exception):
            await self._stack.aclose()
        await self.federation.close()
