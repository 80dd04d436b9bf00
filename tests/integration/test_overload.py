"""Too much at once: who floods is refused with a hint, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from hansa.contract.errors import Reason
from hansa.v1 import catalogue_service_pb2, job_service_pb2
from hansa.v1.catalogue_service_pb2_grpc import CatalogueServiceStub
from hansa.v1.job_service_pb2_grpc import JobServiceStub
from tests.integration.test_jobs_over_the_wire import joined, submission
from tests.support.live_coordinator import CALL_SECONDS, OLGA, RITA, LiveCoordinator, live_coordinator, reason_of

# More than one caller may have under way, and as many as one connection takes.
FLOOD_CHANNELS = 3
FLOOD_AT_ONCE = 50


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveCoordinator]:
    async with live_coordinator(tmp_path / "state") as coordinator:
        yield coordinator


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stubs know the synchronous call only
    for detail in () if status is None else status.details:
        hint = error_details_pb2.RetryInfo()
        if detail.Unpack(hint):
            return float(hint.retry_delay.ToMilliseconds()) / 1000
    return 0.0


class Flood:
    """One person calls as fast as they can, over several connections."""

    def __init__(self, live: LiveCoordinator, metadata: Any) -> None:
        self.refused: set[Reason | None] = set()
        self.hints: list[float] = []
        self.answered = self.turned_away = 0
        self._metadata, self._news = metadata, asyncio.Event()
        stubs = [CatalogueServiceStub(live.channel("people")) for _ in range(FLOOD_CHANNELS)]
        self._tasks = [asyncio.create_task(self._run(stub)) for stub in stubs for _ in range(FLOOD_AT_ONCE)]

    async def _run(self, stub: Any) -> None:
        request = catalogue_service_pb2.ListNodesRequest()
        while True:
            try:
                await stub.ListNodes(request, metadata=self._metadata, timeout=CALL_SECONDS)
                self.answered += 1
            except grpc.aio.AioRpcError as error:
                self.turned_away += 1
                self._news.set()
                self.refused.add(reason_of(error))
                self.hints.append(retry_seconds(error))

    async def until(self, turned_away: int) -> None:
        """Wait until so many calls more were refused."""
        turned_away += self.turned_away
        async with asyncio.timeout(5 * CALL_SECONDS):
            while self.turned_away < turned_away:
                await self._news.wait()
                self._news.clear()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.slow
async def test_one_persons_flood_is_refused_with_a_hint_and_starves_nobody(live: LiveCoordinator) -> None:
    node = await joined(live, "FI")
    flood = Flood(live, live.bearer(RITA))
    try:
        await flood.until(turned_away=500)
        for _ in range(10):
            # On a connection of her own, as from a machine of her own.
            stub = CatalogueServiceStub(live.channel("people"))
            answer = await stub.ListNodes(
                catalogue_service_pb2.ListNodesRequest(), metadata=live.bearer(OLGA), timeout=CALL_SECONDS
            )
            assert [one.node for one in answer.nodes] == ["FI"]
        await node.heartbeat()
        await flood.until(turned_away=100)
    finally:
        await flood.stop()
    assert flood.refused == {Reason.RATE_LIMITED}
    assert min(flood.hints) > 0


@pytest.mark.slow
async def test_a_flood_by_nobody_in_particular_starves_nobody(live: LiveCoordinator) -> None:
    flood = Flood(live, (("authorization", "Bearer nonsense"),))
    try:
        await flood.until(turned_away=500)
        for _ in range(10):
            await live.catalogue("ListNodes", catalogue_service_pb2.ListNodesRequest())
    finally:
        await flood.stop()
    assert flood.answered == 0
    assert flood.refused <= {Reason.UNAUTHENTICATED, Reason.RATE_LIMITED}


async def test_a_draining_coordinator_takes_no_new_job_and_goes_on_with_the_open_ones(live: LiveCoordinator) -> None:
    await joined(live, "FI")
    jobs = JobServiceStub(live.people)
    first, late = submission(live, "FI"), submission(live, "FI")
    await jobs.SubmitJob(first, metadata=live.bearer(RITA), timeout=CALL_SECONDS)
    live.foundation.drain.set(live.clock())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await jobs.SubmitJob(late, metadata=live.bearer(RITA), timeout=CALL_SECONDS)
    assert reason_of(caught.value) is Reason.COORDINATOR_DRAINING
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_seconds(caught.value) > 0
    # The answer to the first may have been lost.
    again = await jobs.SubmitJob(first, metadata=live.bearer(RITA), timeout=CALL_SECONDS)
    cancel = job_service_pb2.CancelJobRequest(request_id=uuid4().hex, job_id=again.job.job_id)
    await jobs.CancelJob(cancel, metadata=live.bearer(RITA), timeout=CALL_SECONDS)
    live.foundation.drain.clear()
    await jobs.SubmitJob(late, metadata=live.bearer(RITA), timeout=CALL_SECONDS)


async def test_who_watches_is_told_when_the_coordinator_stops(tmp_path: Path) -> None:
    async with live_coordinator(tmp_path / "state") as live:
        await joined(live, "FI")
        jobs = JobServiceStub(live.people)
        submitted = await jobs.SubmitJob(submission(live, "FI"), metadata=live.bearer(RITA), timeout=CALL_SECONDS)
        request = job_service_pb2.WatchJobRequest(job_id=submitted.job.job_id)
        watch = jobs.WatchJob(request, metadata=live.bearer(RITA))
        first: Any = await watch.read()
        assert first.job.job_id == submitted.job.job_id
        live.stop.set()
        async with asyncio.timeout(CALL_SECONDS):
            assert await watch.read() is grpc.aio.EOF
            assert await watch.code() is grpc.StatusCode.OK
