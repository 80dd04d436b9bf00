"""What goes on while things die: jobs are asked, watched and cancelled, and people approve and release.

Everybody uses the client library, and repeats a call whose answer was lost
with the same request, as a real client would.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from deploy.local.cast import checker_of, holder_of
from deploy.local.ceremony import PROJECT
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec
from hansa.contract.release import ReleaseClass
from hansa.contract.states import RunState
from hansa.sdk.client import Client
from hansa.sdk.errors import RemoteError
from hansa.sdk.jobs import has_ended, job_state_name, run_state_name
from hansa.sdk.request import JobRequest
from hansa.trust.view import TrustView
from hansa.v1 import types_pb2
from node_agent.cli.airlock import signed_decision
from node_agent.cli.signing import job_approval
from tests.support.nemesis_federation import LONG, NODES, SHORT, Federation

_PEOPLE_SECONDS: Final = 1.0
_LEFT_OVER_SECONDS: Final = 10.0
_STEP_SECONDS: Final = 0.1
_LONGEST_MEASURE_SECONDS: Final = 300.0


@dataclass(slots=True)
class Asked:
    """One job as its researcher saw it."""

    job_id: str
    submitted: float
    lifetime: float
    # None while no answer to the submission has come.
    accepted: bool | None = None
    refused: str = ""
    cancelled: bool = False
    state: str = ""
    ended: float | None = None
    # What was seen of each run, repeats left out.
    seen: dict[str, list[str]] = field(default_factory=dict)

    def note(self, job: types_pb2.Job) -> None:
        """Take down what the coordinator says of the job."""
        self.state = job_state_name(job)
        for run in job.runs:
            states = self.seen.setdefault(run.run_id, [])
            if not states or states[-1] != run_state_name(run):
                states.append(run_state_name(run))
        if has_ended(job) and self.ended is None:
            self.ended = time.monotonic()


@dataclass(slots=True)
class Plan:
    """How much is asked."""

    open_jobs: int = 8
    lifetime: timedelta = timedelta(minutes=5)
    pause: tuple[float, float] = (0.3, 1.0)
    cancelled: float = 0.2
    long: float = 0.4
    by_hand: float = 0.3
    repeated: float = 0.3


@dataclass(slots=True)
class Workload:
    """Asks jobs until it is told to stop; then it only waits for them."""

    federation: Federation
    client: Client
    variants: Sequence[str]
    random: random.Random
    plan: Plan = field(default_factory=Plan)
    asked: dict[str, Asked] = field(default_factory=dict)
    # Seconds by what was measured.
    times: dict[str, list[float]] = field(default_factory=dict)
    # Runs whose processes lived on after their job's end was shown.
    left_over: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    say: Callable[[str], None] = lambda _words: None
    _view: TrustView | None = None
    _datasets: Sequence[types_pb2.Dataset] = ()
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def prepare(self) -> None:
        """Read the trust repository and the catalogue."""
        self._view, self._datasets = await asyncio.gather(self.client.trust.view(), self.client.catalogue.datasets())

    async def run(self) -> None:
        """Ask until cancelled."""
        people = [asyncio.create_task(self._people(node)) for node in NODES]
        try:
            while True:
                if len(self._tasks) < self.plan.open_jobs:
                    self.start()
                await asyncio.sleep(self.random.uniform(*self.plan.pause))
        finally:
            for task in people:
                task.cancel()
            await asyncio.gather(*people, return_exceptions=True)

    def start(self) -> None:
        """Ask one more job."""
        task = asyncio.create_task(self._one(self._request()))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.mistakes.append(f"{type(error).__name__}: {error}")

    async def finish(self, seconds: float) -> None:
        """Wait for the end of all jobs, with people at their desks, at most so long; then give up on the rest."""
        people = [asyncio.create_task(self._people(node)) for node in NODES]
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        for task in (*people, *self._tasks):
            task.cancel()
        await asyncio.gather(*people, *self._tasks, return_exceptions=True)

    # --- one job ------------------------------------------------------------------

    def _request(self) -> JobRequest:
        draw = self.random
        chosen = draw.sample(NODES, draw.choice((1, 2, 3, 3)))
        return JobRequest(
            analysis=LONG if draw.random() < self.plan.long else SHORT,
            project=PROJECT,
            datasets=tuple(f"{node}-aisnp" for node in chosen),
            parameters={"variants": ",".join(draw.sample(list(self.variants), draw.randint(1, 5)))},
            quorum=draw.randint(1, len(chosen)),
            lifetime=self.plan.lifetime,
            release_class=ReleaseClass.MANUAL if draw.random() < self.plan.by_hand else ReleaseClass.AUTO,
        )

    async def probe(self) -> Asked:
        """Ask one short job of every node, and wait for its end; return it as it was seen."""
        request = JobRequest(
            analysis=SHORT,
            project=PROJECT,
            datasets=tuple(f"{node}-aisnp" for node in NODES),
            parameters={"variants": self.variants[0]},
            lifetime=self.plan.lifetime,
        )
        spec, asked = self._new(request)
        if await self._submit(spec, asked):
            await self._watch(asked)
        return asked

    def ask_long(self, nodes: Sequence[str]) -> tuple[Asked, asyncio.Task[None]]:
        """Ask one long job; return it as it will be seen, and the task that ends with it."""
        request = JobRequest(
            analysis=LONG,
            project=PROJECT,
            datasets=tuple(f"{node}-aisnp" for node in nodes),
            parameters={"variants": self.variants[0]},
            lifetime=self.plan.lifetime,
        )
        spec, asked = self._new(request)

        async def work() -> None:
            people = [asyncio.create_task(self._people(node)) for node in nodes]
            try:
                if await self._submit(spec, asked):
                    await self._watch(asked)
            finally:
                for task in people:
                    task.cancel()
                await asyncio.gather(*people, return_exceptions=True)

        return asked, asyncio.create_task(work())

    def _new(self, request: JobRequest) -> tuple[JobSpec, Asked]:
        assert self._view is not None
        spec = self.client.jobs.build(request, self._view, self._datasets)
        asked = Asked(spec.job_id, time.monotonic(), self.plan.lifetime.total_seconds())
        self.asked[spec.job_id] = asked
        return spec, asked

    async def _one(self, request: JobRequest) -> None:
        spec, asked = self._new(request)
        if not await self._submit(spec, asked):
            return
        cancelling = None
        if self.random.random() < self.plan.cancelled:
            cancelling = asyncio.create_task(self._cancel(asked, self.random.uniform(0.2, 8.0)))
        try:
            await self._watch(asked)
            took = (asked.ended or 0.0) - asked.submitted
            self.say(f"job {asked.job_id} of {request.analysis} ended as {asked.state} after {took:.1f} s")
            if cancelling is not None:
                await cancelling
        finally:
            if cancelling is not None:
                cancelling.cancel()

    async def _submit(self, spec: JobSpec, asked: Asked) -> bool:
        """Submit until there is an answer; return whether the job was accepted."""
        while True:
            try:
                asked.note(await self.client.jobs.submit(spec))
            except RemoteError as error:
                if error.reason is not Reason.COORDINATOR_UNREACHABLE and not _is_later(error):
                    asked.accepted, asked.refused = False, error.reason.value
                    return False
                await asyncio.sleep(_STEP_SECONDS)
                continue
            asked.accepted = True
            if self.random.random() < self.plan.repeated:
                # As if the answer had been lost: once more.
                with suppress(RemoteError):
                    asked.note(await self.client.jobs.submit(spec))
            return True

    async def _watch(self, asked: Asked) -> None:
        while asked.ended is None:
            try:
                async for job in self.client.jobs.watch(asked.job_id):
                    asked.note(job)
            except RemoteError as error:
                if error.reason is not Reason.COORDINATOR_UNREACHABLE and not _is_later(error):
                    raise
                await asyncio.sleep(_STEP_SECONDS)

    async def _cancel(self, asked: Asked, after: float) -> None:
        await asyncio.sleep(after)
        if asked.ended is not None:
            return
        while True:
            try:
                asked.note(await self.client.jobs.cancel(asked.job_id))
            except RemoteError as error:
                if error.reason is Reason.COORDINATOR_UNREACHABLE or _is_later(error):
                    await asyncio.sleep(_STEP_SECONDS)
                    continue
                return  # it has ended meanwhile
            break
        asked.cancelled = True
        await self._watch_the_dead(asked)

    async def _watch_the_dead(self, asked: Asked) -> None:
        """Measure how long processes of the job's runs live on, and see that none outlives its shown end."""
        since = time.monotonic()
        took = await measured(lambda: asked.ended is not None and not self._alive(asked), _LONGEST_MEASURE_SECONDS)
        if took is not None:
            self.times.setdefault("cancel to empty cgroup", []).append(took)
        await measured(lambda: asked.ended is not None, _LONGEST_MEASURE_SECONDS)
        if asked.ended is not None:
            # What is shown as cancelled at every node has no process 10 s later.
            await asyncio.sleep(max(asked.ended + _LEFT_OVER_SECONDS - time.monotonic(), 0))
            self.left_over += [f"{run} ({since:.0f})" for run in self._alive(asked, "CANCELLED")]

    def _alive(self, asked: Asked, state: str = "") -> list[str]:
        runs = [run for run, states in asked.seen.items() if not state or states[-1] == state]
        return [run for run in runs if self.federation.run_processes(run)]

    # --- people ---------------------------------------------------------------------

    async def _people(self, node: str) -> None:
        agent = self.federation.agent(node)
        while True:
            with suppress(HansaError):
                for run in await asyncio.to_thread(agent.runs):
                    await asyncio.to_thread(self._look_at, node, run)
            await asyncio.sleep(_PEOPLE_SECONDS)

    def _look_at(self, node: str, run: dict[str, Any]) -> None:
        agent, layout = self.federation.agent(node), self.federation.layout
        if run["state"] == RunState.AWAITING_APPROVAL:
            holder = holder_of(node)
            signed = job_approval(agent.approval_request(run["run_id"]), holder, layout.key(holder))
            agent.approve(run["run_id"], signed)
        elif run["state"] == RunState.AWAITING_RELEASE:
            checker = checker_of(node)
            waiting = agent.airlock_run(run["run_id"])
            signed = signed_decision(
                waiting, "RELEASE", person=checker, key_file=layout.key(checker), reason="Counts only."
            )
            agent.decide(run["run_id"], "release", signed)


async def measured(condition: Callable[[], bool], most: float) -> float | None:
    """Return after how many seconds ``condition`` holds; None if it does not within ``most``."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > most:
            return None
        await asyncio.sleep(_STEP_SECONDS)
    return time.monotonic() - begun


def _is_later(error: RemoteError) -> bool:
    """Say whether to ask again: there was no room, a full disk, or a clock that was wrong for a while."""
    return error.reason in {Reason.INTERNAL, Reason.RATE_LIMITED, Reason.UNAUTHENTICATED} or "BUSY" in error.reason
