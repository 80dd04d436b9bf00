"""A federation of real processes that are killed at named points, and the job that each has to survive."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from deploy.local.commands import environment
from deploy.local.layout import REPOSITORY, Layout
from deploy.local.processes import Daemon, wait_until
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec
from hansa.sdk.client import Client, connect
from hansa.sdk.jobs import has_ended, job_state_name
from hansa.sdk.profile import load_profile
from hansa.sdk.proving import prove
from hansa.sdk.request import JobRequest
from hansa.sdk.result import parse_result
from hansa.sdk.trust import read_trust_root
from hansa.sdk.verification import Verifier
from tests.support.crash_daemon import line_of
from tests.support.local_federation import Federation

T = TypeVar("T")

NODE: Final = "FI"
ASKED: Final = "rs12913832"
PATIENCE: Final = 240.0
_POLL: Final = 0.1
_AWAY: Final = frozenset({Reason.COORDINATOR_UNREACHABLE, Reason.INTERNAL})


@dataclass
class Outcome:
    """What came of one point: the phases at which somebody died there, and the job's end."""

    struck: list[str] = field(default_factory=list)
    job_id: str = ""
    state: str = ""
    figures: tuple[int | None, int | None] = (None, None)


@dataclass
class CrashFederation:
    """One coordinator and one node, whose daemons have crash points."""

    federation: Federation
    plan: Path
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return self.federation.layout

    @classmethod
    def start(cls, root: Path, data: Path) -> CrashFederation:
        """Set one up by the public commands, then start its daemons again with crash points."""
        made = cls(Federation.start(root, NODE, data), root / "plan")
        node = made.layout.node(NODE)
        states = {"coordinator": made.layout.coordinator_state, "agent": node.state, "worker": node.state}
        plain = {"coordinator": made.layout.coordinator, "agent": node.agent, "worker": node.worker}
        for kind, daemon in plain.items():
            command = (sys.executable, "-m", "tests.support.crash_daemon", str(made.plan), kind, str(states[kind]))
            made.daemons[kind] = replace(daemon, command=command)
        for kind in ("worker", "agent", "coordinator"):
            made.kill(kind)
        for kind in made.daemons:
            made.begin(kind)
        return made

    def stop(self) -> None:
        """Stop all of it; raise if something is left."""
        self.plan.unlink(missing_ok=True)
        self.federation.stop()

    def begin(self, kind: str) -> None:
        """Start a daemon."""
        env = {**environment(), "PYTHONPATH": str(REPOSITORY), "HANSA_DEBUG": "1"}
        self.daemons[kind].start(self.layout.root, env)

    def kill(self, kind: str) -> None:
        """Kill a daemon with SIGKILL, and wait until it is gone."""
        process = self.daemons[kind].running()
        if process is not None:
            process.signal(signal.SIGKILL)
            assert wait_until(lambda: not process.alive(), PATIENCE)

    def arm(self, point: str, phase: str) -> None:
        """Have whoever comes to the point die there."""
        part = self.plan.with_suffix(".new")
        part.write_text(line_of(point, phase))
        part.replace(self.plan)

    async def survive(self, kind: str, point: str, phases: Sequence[str], *, kick: bool = False) -> Outcome:
        """Let a job live through a death of ``kind`` at each of ``phases`` of the point.

        Args:
            kind: who dies: a daemon, or ``pool``, which its supervisor starts again.
            point: where.
            phases: one death for each, one after the other.
            kick: whether the point is passed at a start only, so that the daemon is killed to come to it.
        """
        outcome = Outcome()
        self.arm(point, phases[0])
        if kick:
            self.kill(kind)
            self.begin(kind)
        job = asyncio.create_task(self._job(outcome))
        try:
            for number, phase in enumerate(phases):
                await self._until_struck(f"{point} {phase}")
                outcome.struck.append(phase)
                if number + 1 < len(phases):
                    self.arm(point, phases[number + 1])
                await self._again(kind)
            await asyncio.wait_for(job, PATIENCE)
        finally:
            self.plan.unlink(missing_ok=True)
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
        return outcome

    async def _until_struck(self, what: str) -> None:
        struck = self.plan.with_suffix(".struck")
        assert await _eventually(struck.exists), f"nobody came to {what}"
        struck.unlink()

    async def _again(self, kind: str) -> None:
        """Start the daemon that has died; a pool's own supervisor does it itself."""
        if kind == "pool":
            return
        daemon = self.daemons[kind]
        assert await _eventually(lambda: daemon.running() is None), f"the {kind} lives on"
        self.begin(kind)

    def mend(self) -> None:
        """Have every daemon run, whatever the case before has left."""
        self.plan.unlink(missing_ok=True)
        self.plan.with_suffix(".struck").unlink(missing_ok=True)
        for kind, daemon in self.daemons.items():
            if daemon.running() is None:
                self.begin(kind)

    async def _job(self, outcome: Outcome) -> None:
        spec = await self._insist(self._built)
        outcome.job_id = spec.job_id
        await self._insist(lambda client: client.jobs.submit(spec))
        while True:
            job = await self._insist(lambda client: client.jobs.get(spec.job_id))
            if has_ended(job):
                break
            await asyncio.sleep(_POLL)
        outcome.state = job_state_name(job)
        answer = await self._insist(lambda client: client.jobs.result(spec.job_id))
        outcome.figures = _figures(parse_result(answer.result))

    async def proven(self, job_id: str) -> bool:
        """Say whether the job's evidence holds, with the proofs of both logs."""
        profile = load_profile(self.layout.profile("researcher"))
        verifier = Verifier(root=read_trust_root(profile.trust_root))
        return (await self._insist(lambda client: prove(client, verifier, job_id), seconds=90)).report.ok

    async def _built(self, client: Client) -> JobSpec:
        request = JobRequest(
            analysis="allele-frequency",
            datasets=(f"{NODE}-aisnp",),
            parameters={"variants": ASKED},
            lifetime=timedelta(minutes=20),
        )
        view, datasets = await asyncio.gather(client.trust.view(), client.catalogue.datasets())
        return client.jobs.build(request, view, datasets)

    async def _insist(self, call: Callable[[Client], Awaitable[T]], seconds: float = 20) -> T:
        """Make the same call until it is answered."""
        profile = load_profile(self.layout.profile("researcher"))
        while True:
            with suppress(TimeoutError):
                try:
                    async with asyncio.timeout(seconds), connect(profile) as client:
                        return await call(client)
                except HansaError as error:
                    if error.reason not in _AWAY:
                        raise
            await asyncio.sleep(_POLL)


def _figures(result: Any) -> tuple[int | None, int | None]:
    """Return the allele's and all alleles' counts of the one variant at the one node."""
    (entry,) = result.variants
    cell = entry.countries[NODE]
    return cell.ac, cell.an


async def _eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    return await asyncio.to_thread(wait_until, condition, seconds, 0.02)
