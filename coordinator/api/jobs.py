"""``JobService``: what researchers ask for, and operators look at."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial

from coordinator.api.caller import current_caller
from coordinator.api.calls import request_id_of
from coordinator.api.frames import signed_of
from coordinator.api.guard import Context
from coordinator.api.messages import timestamp
from coordinator.api.pages import page_of, token_of
from coordinator.domain.records import JobRecord, RunRecord
from coordinator.services.desk import Desk
from coordinator.services.evidence import LogEvidence, job_evidence, summary_content
from coordinator.services.jobs import Asker, JobView, cancel_job, job_result, list_jobs, show, view_job, watch_job
from coordinator.services.submission import submit_job
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import CHUNK_BYTES
from hansa.runtime.space import Space
from hansa.v1 import job_service_pb2 as wire
from hansa.v1 import job_service_pb2_grpc, types_pb2


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Parse, one call, convert."""

    def __init__(self, desk: Desk, logs: LogEvidence, space: Space) -> None:
        """Take what runs the transactions and tells of them, what the audit logs give of a job, and the store's disk."""
        self._desk = desk
        self._logs = logs
        self._space = space

    async def SubmitJob(self, request: wire.SubmitJobRequest, context: Context) -> wire.SubmitJobResponse:
        """Store a signed job; the job's own id makes a repeat safe."""
        request_id_of(request)
        if self._space.short:
            # Before anything is promised: the room that is left is for the work that was accepted.
            raise HansaError(Reason.STORE_FULL, log=self._space.short)
        signed, asker, turn = signed_of(request.job), _asker(), self._desk.turn()
        job = await self._desk.commit(partial(submit_job, signed=signed, caller=asker.name, turn=turn))
        return wire.SubmitJobResponse(job=job_message(show(job, turn)))

    async def GetJob(self, request: wire.GetJobRequest, context: Context) -> wire.GetJobResponse:
        """Return one job."""
        found = partial(view_job, job_id=request.job_id, asker=_asker(), turn=self._desk.turn())
        return wire.GetJobResponse(job=job_message(await self._desk.read(found)))

    async def ListJobs(self, request: wire.ListJobsRequest, context: Context) -> wire.ListJobsResponse:
        """Return a page of jobs, newest first."""
        listed = partial(list_jobs, page=page_of(request), asker=_asker(), turn=self._desk.turn())
        found = await self._desk.read(listed)
        return wire.ListJobsResponse(
            jobs=[job_message(view) for view in found.items], next_page_token=token_of(found.last)
        )

    async def WatchJob(self, request: wire.WatchJobRequest, context: Context) -> AsyncIterator[wire.WatchJobResponse]:
        """Send the job at once and after each change, until it has ended."""
        async with aclosing(watch_job(self._desk, request.job_id, _asker())) as views:
            async for view in views:
                yield wire.WatchJobResponse(job=job_message(view))

    async def CancelJob(self, request: wire.CancelJobRequest, context: Context) -> wire.CancelJobResponse:
        """Write down the wish to end a job."""
        work = partial(
            cancel_job,
            job_id=request.job_id,
            asker=_asker(),
            request_id=request_id_of(request),
            turn=self._desk.turn(),
        )
        return wire.CancelJobResponse(job=job_message(await self._desk.commit(work)))

    async def GetResult(self, request: wire.GetResultRequest, context: Context) -> wire.GetResultResponse:
        """Return what an ended job ended with."""
        found = partial(job_result, job_id=request.job_id, asker=_asker(), turn=self._desk.turn())
        result = await self._desk.read(found)
        return wire.GetResultResponse(job=job_message(result.view), result=result.content)

    async def GetEvidence(
        self, request: wire.GetEvidenceRequest, context: Context
    ) -> AsyncIterator[wire.GetEvidenceResponse]:
        """Send the files that the result rests on, the summaries one after the other."""
        gathered = partial(job_evidence, job_id=request.job_id, asker=_asker(), turn=self._desk.turn(), logs=self._logs)
        evidence = await self._desk.read(gathered)
        for name, content in evidence.files.items():
            for message in _parts(name, content):
                yield message
        for name, run_id in evidence.summaries.items():
            content = await self._desk.read(partial(summary_content, run_id=run_id))
            for message in _parts(name, content):
                yield message


def _parts(name: str, content: bytes) -> Iterator[wire.GetEvidenceResponse]:
    """Yield a file in chunks, the first with its name."""
    for start in range(0, max(len(content), 1), CHUNK_BYTES):
        chunk = content[start : start + CHUNK_BYTES]
        yield wire.GetEvidenceResponse(name=name if start == 0 else "", chunk=chunk)


def _asker() -> Asker:
    caller = current_caller()
    return Asker(caller.name, caller.roles)


def job_message(view: JobView) -> types_pb2.Job:
    """Return a job as its callers see it."""
    job: JobRecord = view.job
    return types_pb2.Job(
        job_id=job.job_id,
        analysis=job.analysis,
        submitter=job.submitter,
        state=types_pb2.Job.State.Value(job.state.value),
        quorum=job.quorum,
        submitted_at=timestamp(job.submitted_at),
        deadline=timestamp(job.not_after),
        runs=[_run_message(run) for run in job.runs],
        waits_for=view.waits_for,
    )


def _run_message(run: RunRecord) -> types_pb2.Run:
    return types_pb2.Run(
        run_id=run.run_id,
        node=run.node,
        round=run.round,
        attempt=run.attempt,
        execution=run.execution,
        state=types_pb2.Run.State.Value(run.state.value),
        reason=run.reason,
        incident=run.incident,
        dataset=run.dataset,
        updated_at=timestamp(run.updated_at),
    )
