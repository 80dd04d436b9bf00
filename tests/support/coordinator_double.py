"""A double of the coordinator's listener for people: TLS and tokens are real, the rest is a script.

It stands in for the coordinator where a test needs what the real one cannot be
made to do on command: streams that break, jobs that end in a given way, absurd
answers. Tokens, envelopes and error statuses go through the coordinator's own
code, so that the double is not more forgiving than the real one.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from grpc_status import rpc_status

from coordinator.api.errors import status_of
from coordinator.api.tokens import claimed_name, verify_token
from coordinator.ca.files import create_keys, load_keys
from hansa.contract import envelope
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec, parse_job
from hansa.runtime.channels import SERVER_OPTIONS
from hansa.sdk.keys import create_key, load_private_key
from hansa.sdk.profile import Profile
from hansa.v1 import (
    catalogue_service_pb2 as catalogue,
)
from hansa.v1 import (
    catalogue_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    trust_service_pb2,
    trust_service_pb2_grpc,
    types_pb2,
)
from tests.support.catalogue_answers import ANALYSIS, FILES, dataset
from tests.support.trust_world import TrustWorld, build_trust_world

JOB, RUN = types_pb2.Job, types_pb2.Run
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Script:
    """What the double answers, and what it was asked.

    ``watched`` is what each ``WatchJob`` call sends, one list per call, the
    last for all later ones; a call whose list ends without the job's end
    breaks its stream. ``None`` in a list waits for the caller to go away.
    """

    person_key: Ed25519PublicKey
    trust: TrustWorld
    datasets: list[types_pb2.Dataset] = field(
        default_factory=lambda: [dataset("GB-lct", "GB"), dataset("FI-lct", "FI"), dataset("ES-lct", "ES", "GRCh38")]
    )
    page: int = 1
    result: bytes = b""
    watched: list[list[types_pb2.Job | None]] = field(default_factory=list)
    lose_submissions: int = 0
    # What the next submissions are refused with, before they are stored.
    refuse_submissions: list[HansaError] = field(default_factory=list)
    # The job that a submission is answered with; the submitted one if empty.
    answers_as: str = ""
    jobs: dict[str, types_pb2.Job] = field(default_factory=dict)
    specs: list[JobSpec] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    watch_calls: int = 0

    def job(self, state: types_pb2.Job.State.ValueType, **runs: types_pb2.Run.State.ValueType) -> types_pb2.Job:
        """Return a job in ``state`` with a run per node."""
        made = JOB(job_id="019aa0de-0000-7000-8000-000000000001", analysis="allele-frequency@1.0", state=state)
        made.deadline.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        for node, at in runs.items():
            made.runs.add(node=node, state=at)
        return made


@contextmanager
def coordinator_double(folder: Path) -> Iterator[tuple[Script, Path]]:
    """Yield the script of a double that serves, and the path of its researcher's profile.

    It serves from a thread with an event loop of its own, so that commands can
    be run beside it as they are run from a shell.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="coordinator-double")
    thread.start()
    serving = _serving(folder)
    try:
        yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[tuple[Script, Path]]:
    key = create_key(folder / "ada")
    names = ["127.0.0.1"]
    now = datetime.now(UTC)
    script = Script(key, trust_of(folder, now))
    authority = create_keys(folder / "ca", "demo", names=names, now=now)
    keys = load_keys(folder / "ca", names=names, now=now)
    (folder / "server-ca.pem").write_bytes(authority.certificate_pem)
    (folder / "root.json").write_bytes(script.trust.root)
    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    job_service_pb2_grpc.add_JobServiceServicer_to_server(Jobs(script), server)
    catalogue_service_pb2_grpc.add_CatalogueServiceServicer_to_server(Catalogue(script), server)
    trust_service_pb2_grpc.add_TrustServiceServicer_to_server(Trust(script), server)
    credentials = grpc.ssl_server_credentials([(keys.server_key_pem, keys.server_chain_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield script, write_profile(folder, port)
    finally:
        await server.stop(None)


def trust_of(folder: Path, now: datetime) -> TrustWorld:
    """Return a federation's trust in which the key in ``folder`` is ada's."""
    datasets = {"GB": "GB-lct", "FI": "FI-lct", "ES": "ES-lct"}
    return build_trust_world(FILES, datasets=datasets, now=now, keys={"ada": load_private_key(folder / "ada")})


def write_profile(folder: Path, port: int) -> Path:
    """Write the profile of ada, whose key and CA are in ``folder``."""
    profile = Profile(
        federation="demo",
        endpoint=f"127.0.0.1:{port}",
        ca_file=Path("server-ca.pem"),
        person="ada",
        key_file=Path("ada"),
        trust_root=Path("root.json"),
    )
    (folder / "profile.toml").write_text(profile.to_toml())
    return folder / "profile.toml"


def closed_port() -> int:
    """Return a port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def refuse(context: Context, error: HansaError) -> None:
    """End the call as the coordinator would, but log nothing."""
    await context.abort_with_status(rpc_status.to_status(status_of(error)))


class _Double:
    def __init__(self, script: Script) -> None:
        self.script = script

    async def check(self, context: Context) -> None:
        """Let the caller in as the coordinator would."""
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        try:
            name = claimed_name(token)
            verify_token(token, name=name, key=self.script.person_key, federation="demo", now=datetime.now(UTC))
            if token in self.script.tokens:
                raise HansaError(Reason.UNAUTHENTICATED, "a token was used twice")
        except HansaError as error:
            await refuse(context, error)
        self.script.tokens.append(token)


class Trust(_Double, trust_service_pb2_grpc.TrustServiceServicer):
    """Answers with the files of ``script.trust``, in small chunks."""

    async def GetMetadata(  # noqa: N802 - name fixed by the proto
        self, request: trust_service_pb2.GetMetadataRequest, context: Context
    ) -> AsyncIterator[trust_service_pb2.GetMetadataResponse]:
        await self.check(context)
        try:
            data = self.script.trust.files.metadata_file(request.role, request.version)
        except HansaError as error:
            await refuse(context, error)
        for start in range(0, len(data), 1000):
            yield trust_service_pb2.GetMetadataResponse(chunk=data[start : start + 1000])

    async def GetTarget(  # noqa: N802
        self, request: trust_service_pb2.GetTargetRequest, context: Context
    ) -> AsyncIterator[trust_service_pb2.GetTargetResponse]:
        await self.check(context)
        try:
            data = self.script.trust.files.target_file(request.sha256.hex())
        except HansaError as error:
            await refuse(context, error)
        self.script.fetched.append(request.path)
        for start in range(0, len(data), 1000):
            yield trust_service_pb2.GetTargetResponse(chunk=data[start : start + 1000])


class Catalogue(_Double, catalogue_service_pb2_grpc.CatalogueServiceServicer):
    """Answers in pages of ``script.page``."""

    async def GetAnalysis(  # noqa: N802 - name fixed by the proto
        self, request: catalogue.GetAnalysisRequest, context: Context
    ) -> catalogue.GetAnalysisResponse:
        await self.check(context)
        if request.name != ANALYSIS.name or request.version not in {"", ANALYSIS.version}:
            await refuse(context, HansaError(Reason.ANALYSIS_UNKNOWN, field="analysis"))
        return catalogue.GetAnalysisResponse(analysis=ANALYSIS)

    async def ListDatasets(  # noqa: N802
        self, request: catalogue.ListDatasetsRequest, context: Context
    ) -> catalogue.ListDatasetsResponse:
        await self.check(context)
        start = int(request.page_token or 0)
        end = start + self.script.page
        more = str(end) if end < len(self.script.datasets) else ""
        return catalogue.ListDatasetsResponse(datasets=self.script.datasets[start:end], next_page_token=more)

    async def ListAnalyses(self, request: Any, context: Context) -> catalogue.ListAnalysesResponse:  # noqa: N802
        await self.check(context)
        return catalogue.ListAnalysesResponse(analyses=[ANALYSIS])

    async def ListNodes(self, request: Any, context: Context) -> catalogue.ListNodesResponse:  # noqa: N802
        await self.check(context)
        node = types_pb2.Node(node="FI", state=types_pb2.Node.ACTIVE, connected=True, reason="\x1b[2J")
        return catalogue.ListNodesResponse(nodes=[node])


class Jobs(_Double, job_service_pb2_grpc.JobServiceServicer):
    """Stores what is submitted; watches and results are scripted."""

    async def SubmitJob(  # noqa: N802
        self, request: job_service_pb2.SubmitJobRequest, context: Context
    ) -> job_service_pb2.SubmitJobResponse:
        await self.check(context)
        (signature,) = request.job.signatures
        signed = envelope.Signed(request.job.payload_type, request.job.payload, signature.key_id, signature.signature)
        envelope.verify(signed, payload_type=envelope.JOB_TYPE, key=self.script.person_key)
        spec = parse_job(request.job.payload)
        self.script.specs.append(spec)
        if self.script.refuse_submissions:
            await refuse(context, self.script.refuse_submissions.pop(0))
        self.script.jobs.setdefault(spec.job_id, JOB(job_id=spec.job_id, state=JOB.PENDING, quorum=spec.quorum))
        if self.script.lose_submissions:
            self.script.lose_submissions -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost")
        if self.script.answers_as:
            return job_service_pb2.SubmitJobResponse(job=JOB(job_id=self.script.answers_as))
        return job_service_pb2.SubmitJobResponse(job=self.script.jobs[spec.job_id])

    async def WatchJob(  # noqa: N802
        self, request: job_service_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        await self.check(context)
        lists = self.script.watched
        if not lists:
            await refuse(context, HansaError(Reason.JOB_UNKNOWN))
        number = min(self.script.watch_calls, len(lists) - 1)
        self.script.watch_calls += 1
        for job in lists[number]:
            if job is None:
                await _until_gone(context)
            else:
                yield job_service_pb2.WatchJobResponse(job=job)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream broke")

    async def GetJob(  # noqa: N802
        self, request: job_service_pb2.GetJobRequest, context: Context
    ) -> job_service_pb2.GetJobResponse:
        await self.check(context)
        if request.job_id not in self.script.jobs:
            await refuse(context, HansaError(Reason.JOB_UNKNOWN))
        return job_service_pb2.GetJobResponse(job=self.script.jobs[request.job_id])

    async def GetResult(self, request: Any, context: Context) -> job_service_pb2.GetResultResponse:  # noqa: N802
        await self.check(context)
        if not self.script.result:
            await refuse(context, HansaError(Reason.JOB_NOT_ENDED))
        result = self.script.result.replace(b"019aa0de-0000-7000-8000-000000000001", request.job_id.encode())
        return job_service_pb2.GetResultResponse(job=JOB(waits_for="why it ended"), result=result)

    async def GetEvidence(  # noqa: N802
        self, request: Any, context: Context
    ) -> AsyncIterator[job_service_pb2.GetEvidenceResponse]:
        await self.check(context)
        await refuse(context, HansaError(Reason.JOB_NOT_ENDED))
        yield job_service_pb2.GetEvidenceResponse()

    async def ListJobs(self, request: Any, context: Context) -> job_service_pb2.ListJobsResponse:  # noqa: N802
        await self.check(context)
        return job_service_pb2.ListJobsResponse(jobs=self.script.jobs.values())

    async def CancelJob(  # noqa: N802
        self, request: job_service_pb2.CancelJobRequest, context: Context
    ) -> job_service_pb2.CancelJobResponse:
        await self.check(context)
        job = self.script.jobs.get(request.job_id)
        if job is None:
            await refuse(context, HansaError(Reason.JOB_UNKNOWN))
            raise AssertionError("refuse returned")
        job.state = JOB.CANCELLING
        return job_service_pb2.CancelJobResponse(job=job)


async def _until_gone(context: Context) -> None:
    gone = asyncio.Event()
    context.add_done_callback(lambda _: gone.set())  # type: ignore[arg-type]  # the stub names a private protocol
    await gone.wait()
