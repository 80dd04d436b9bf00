"""Jobs: build, sign, submit, watch, cancel, read the result."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Final

import grpc
import uuid6

from hansa.contract import envelope
from hansa.contract.errors import Reason
from hansa.contract.ids import job_id as checked_id
from hansa.contract.job import JobSpec
from hansa.contract.limits import MAX_PAGE
from hansa.contract.states import JOB_TERMINAL
from hansa.runtime.backoff import delays
from hansa.sdk.connection import Connection, draw
from hansa.sdk.errors import RemoteError, remote_error, unreachable
from hansa.sdk.paging import read_pages
from hansa.sdk.request import Fresh, JobRequest, build_job
from hansa.trust.view import TrustView
from hansa.v1 import job_service_pb2 as wire
from hansa.v1 import job_service_pb2_grpc, types_pb2

# How long after a job's deadline its end may still be on its way.
_AFTER_DEADLINE: Final = timedelta(seconds=60)


def job_state_name(job: types_pb2.Job) -> str:
    """Return the state of ``job`` by name, also one that this release does not know."""
    return enum_name(types_pb2.Job.State.keys(), types_pb2.Job.State.values(), job.state)


def run_state_name(run: types_pb2.Run) -> str:
    """Return the state of ``run`` by name, also one that this release does not know."""
    return enum_name(types_pb2.Run.State.keys(), types_pb2.Run.State.values(), run.state)


def enum_name(names: Sequence[str], numbers: Sequence[int], number: int) -> str:
    """Return the name of ``number``, or ``UNKNOWN_<number>``."""
    return dict(zip(numbers, names, strict=True)).get(number, f"UNKNOWN_{number}")


def has_ended(job: types_pb2.Job) -> bool:
    """Say whether ``job`` is in a state that it will not leave."""
    return job_state_name(job) in JOB_TERMINAL


class JobsClient:
    """The caller's jobs. Every method raises ``RemoteError``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = job_service_pb2_grpc.JobServiceStub(connection.channel)

    def build(self, request: JobRequest, view: TrustView, datasets: Sequence[types_pb2.Dataset]) -> JobSpec:
        """Return a new job of the caller's, with ids and times of its own.

        Args:
            request: what is asked.
            view: the verified trust repository; what says which analysis is meant.
            datasets: what the coordinator says that nodes offer.

        Raises:
            HansaError: as ``build_job``.
        """
        fresh = Fresh(
            submitter=self._connection.profile.person,
            now=self._connection.clock(),
            job_id=str(uuid6.uuid7()),
            nonce=secrets.token_hex(16),
        )
        return build_job(request, view, datasets, fresh=fresh)

    async def submit(self, spec: JobSpec) -> types_pb2.Job:
        """Sign ``spec`` and submit it. Its bytes are made and signed once, however often they are sent.

        An answer about another job is refused: who watched, read and verified
        that one would take it for the answer to this question.
        """
        signed = envelope.sign(
            envelope.JOB_TYPE, spec.to_bytes(), key_id=self._connection.profile.person, key=self._connection.key
        )
        job = types_pb2.Envelope(
            payload_type=signed.payload_type,
            payload=signed.payload,
            signatures=[types_pb2.Signature(key_id=signed.key_id, signature=signed.signature)],
        )
        request = wire.SubmitJobRequest(request_id=spec.job_id, job=job)
        submitted = (await self._connection.call(self._stub.SubmitJob, request)).job
        if submitted.job_id != spec.job_id:
            raise RemoteError(Reason.MALFORMED, "The coordinator answered with another job.", field="job_id")
        return submitted

    async def get(self, job_id: str) -> types_pb2.Job:
        """Return the job."""
        request = wire.GetJobRequest(job_id=checked_id(job_id))
        return (await self._connection.call(self._stub.GetJob, request)).job

    async def list(self, *, limit: int) -> list[types_pb2.Job]:
        """Return the newest ``limit`` jobs: the caller's, or everybody's for an operator."""

        async def fetch(token: str) -> tuple[Sequence[types_pb2.Job], str]:
            request = wire.ListJobsRequest(page_size=min(limit, MAX_PAGE), page_token=token)
            answer = await self._connection.call(self._stub.ListJobs, request)
            return answer.jobs, answer.next_page_token

        return await read_pages(fetch, limit=limit)

    async def cancel(self, job_id: str) -> types_pb2.Job:
        """Ask for the job's end; its nodes confirm it later."""
        request = wire.CancelJobRequest(request_id=self._connection.request_id(), job_id=checked_id(job_id))
        return (await self._connection.call(self._stub.CancelJob, request)).job

    async def result(self, job_id: str) -> wire.GetResultResponse:
        """Return the job and its result's bytes; refused with ``JOB_NOT_ENDED`` before its end."""
        return await self._connection.call(self._stub.GetResult, wire.GetResultRequest(job_id=checked_id(job_id)))

    async def evidence(self, job_id: str) -> AsyncIterator[tuple[str, bytes]]:
        """Yield the files that the job's result rests on: a name, or an empty one to go on, and a chunk.

        Raises:
            RemoteError: refused, or the stream broke.
        """
        request = wire.GetEvidenceRequest(job_id=checked_id(job_id))
        try:
            async for answer in self._stub.GetEvidence(request, metadata=self._connection.metadata()):
                yield answer.name, answer.chunk
        except grpc.aio.AioRpcError as error:
            raise remote_error(error) from error

    async def watch(self, job_id: str, *, on_loss: Callable[[], None] = lambda: None) -> AsyncIterator[types_pb2.Job]:
        """Yield the job now and after each change, the last time when it has ended.

        A stream that breaks is opened again, with growing pauses, until a
        minute after the job's deadline.

        Args:
            job_id: which one.
            on_loss: called each time that the stream has broken.

        Raises:
            RemoteError: refused; or the coordinator could not be reached at
                all, or not again.
        """
        request = wire.WatchJobRequest(job_id=checked_id(job_id))
        until = self._connection.clock()
        pauses, patience = delays(draw), self._connection.patience()
        while True:
            try:
                async for answer in self._stub.WatchJob(request, metadata=self._connection.metadata()):
                    until = answer.job.deadline.ToDatetime(until.tzinfo) + _AFTER_DEADLINE
                    pauses = delays(draw)
                    patience.renew()
                    yield answer.job
                    if has_ended(answer.job):
                        return
            except grpc.aio.AioRpcError as error:
                refusal = remote_error(error)
                if refusal.reason is not Reason.COORDINATOR_UNREACHABLE:
                    await patience.wait(refusal)
                    continue
            if self._connection.clock() >= until:
                raise unreachable(self._connection.profile.endpoint)
            on_loss()
            await asyncio.sleep(next(pauses))
