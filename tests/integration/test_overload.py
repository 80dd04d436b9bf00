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

# In all more than one caller may have under way, and as many as one connection takes.
CONNECTIONS = 3
AT_ONCE = 50
# Together more calls than a minute's worth.
ROUNDS = 5
# The flood and the server share this process's loop.
PATIENCE_SECONDS = 10 * CALL_SECONDS


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


def stubs(live: LiveCoordinator, count: int) -> list[Any]:
    """Return stubs of the catalogue, each on a connection of its own."""
    return [CatalogueServiceStub(live.channel("people")) for _ in range(count)]


async def ask(stub: Any, metadata: Any) -> grpc.aio.AioRpcError | None:
    """Ask for the nodes; return the refusal."""
    try:
        await stub.ListNodes(catalogue_service_pb2.ListNodesRequest(), metadata=metadata, timeout=PATIENCE_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def flood(through: list[Any], metadata: Any) -> list[grpc.aio.AioRpcError | None]:
    """Ask as often at the same time as all of ``through`` allow; return what came of each."""
    return await asyncio.gather(*(ask(stub, metadata) for stub in through for _ in range(AT_ONCE)))


@pytest.mark.slow
async def test_one_persons_flood_is_refused_with_a_hint_and_starves_nobody(live: LiveCoordinator) -> None:
    node = await joined(live, "FI")
    through, (olgas,) = stubs(live, CONNECTIONS), stubs(live, 1)
    refusals: list[grpc.aio.AioRpcError] = []
    for _ in range(ROUNDS):
        outcomes, served = await asyncio.gather(flood(through, live.bearer(RITA)), ask(olgas, live.bearer(OLGA)))
        assert served is None
        refusals += [outcome for outcome in outcomes if outcome is not None]
    assert {reason_of(error) for error in refusals} == {Reason.RATE_LIMITED}
    assert min(retry_seconds(error) for error in refusals) > 0
    await node.heartbeat()


@pytest.mark.slow
async def test_a_flood_by_nobody_in_particular_starves_nobody(live: LiveCoordinator) -> None:
    through, (olgas,) = stubs(live, CONNECTIONS), stubs(live, 1)
    for _ in range(ROUNDS):
        outcomes, served = await asyncio.gather(
            flood(through, (("authorization", "Bearer nonsense"),)), ask(olgas, live.bearer(OLGA))
        )
        assert served is None
        assert {error and reason_of(error) for error in outcomes} <= {Reason.UNAUTHENTICATED, Reason.RATE_LIMITED}


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
