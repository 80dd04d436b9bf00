"""How a released summary comes in: read, checked against its schema, stored once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from sqlalchemy.orm import Session

from coordinator.domain.evaluation import may_end_a_job
from coordinator.services.combination import manifest_of
from coordinator.services.desk import Changed, Desk, Turn
from coordinator.services.evaluation import settle
from coordinator.services.statements import set_apart
from coordinator.store.jobs import Awaited, JobRepository
from coordinator.store.summaries import NewSummary, SummaryRepository
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import is_run_id
from hansa.contract.job import parse_job
from hansa.contract.limits import CHUNK_BYTES
from hansa.contract.manifest import Manifest
from hansa.contract.sealing import BUCKET_BYTES, OVERHEAD_BYTES, SEALED_BYTES, is_sealed_size
from hansa.contract.summary import parse_summary

_log = structlog.get_logger(__name__)

_SHA256_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The header of an upload."""

    node: str
    run_id: str
    attempt: int
    digest: bytes
    size: int


class Upload:
    """Gathers one upload's chunks and says what they were; no I/O."""

    def __init__(self, announced: Announced) -> None:
        """Take the header.

        Raises:
            HansaError: ``PROTOCOL_VIOLATION``, or ``SUMMARY_CORRUPT`` where
                the summary is announced too large.
        """
        if not is_run_id(announced.run_id):
            raise HansaError(Reason.RUN_UNKNOWN)
        if len(announced.digest) != _SHA256_BYTES:
            raise HansaError(Reason.PROTOCOL_VIOLATION, field="digest")
        if not 0 < announced.size <= SEALED_BYTES:
            raise HansaError(Reason.SUMMARY_CORRUPT, f"A summary has at most {SEALED_BYTES} bytes.", field="size")
        self.announced = announced
        self._content = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take the next chunk.

        Raises:
            HansaError: ``PROTOCOL_VIOLATION``, an empty or too large chunk;
                ``SUMMARY_CORRUPT``, more bytes than were announced.
        """
        if not 0 < len(chunk) <= CHUNK_BYTES:
            raise HansaError(Reason.PROTOCOL_VIOLATION, field="chunk")
        self._content += chunk
        if len(self._content) > self.announced.size:
            raise HansaError(Reason.SUMMARY_CORRUPT)

    def content(self) -> bytes:
        """Return the whole.

        Raises:
            HansaError: ``SUMMARY_CORRUPT``; it is not what was announced.
        """
        content = bytes(self._content)
        if len(content) != self.announced.size or hashlib.sha256(content).digest() != self.announced.digest:
            raise HansaError(Reason.SUMMARY_CORRUPT)
        return content


async def collect(desk: Desk, upload: Upload) -> None:
    """Store the uploaded summary; the same bytes again change nothing.

    Raises:
        HansaError: ``RUN_UNKNOWN``, also for another node's run;
            ``SUMMARY_CONFLICT``, another digest was stored or announced, and
            the node is set apart; ``SUMMARY_CORRUPT``, not what was announced
            or not of the schema.
    """
    announced, content = upload.announced, upload.content()
    awaited = await admit(desk, announced)
    if awaited is None:
        return
    # A large summary takes a while to check; sessions must not wait for it.
    summary = await asyncio.to_thread(_read, content, awaited, announced)
    turn = desk.turn()
    async with _conflicts_set_apart(desk, announced):
        await desk.commit(lambda session: _store(session, announced, summary, turn))


async def admit(desk: Desk, announced: Announced) -> Wanted | None:
    """Return what an announced summary must conform to; None if its bytes are stored.

    Raises:
        HansaError: as ``expected``; on ``SUMMARY_CONFLICT`` the node is set apart.
    """
    async with _conflicts_set_apart(desk, announced):
        return await desk.read(lambda session: expected(session, announced))


@asynccontextmanager
async def _conflicts_set_apart(desk: Desk, announced: Announced) -> AsyncIterator[None]:
    try:
        yield
    except HansaError as error:
        if error.reason is Reason.SUMMARY_CONFLICT:
            await desk.commit(partial(_set_apart, announced=announced, turn=desk.turn()))
        raise


def _set_apart(session: Session, *, announced: Announced, turn: Turn) -> tuple[None, Changed]:
    """Quarantine a node that uploads another summary than it has signed, announced or uploaded before."""
    job_id, run = JobRepository(session).runs({announced.run_id})[announced.run_id]
    set_apart(session, run, job_id, HansaError(Reason.SUMMARY_CONFLICT), turn)
    return None, Changed()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an upload must conform to."""

    manifest: Manifest
    is_sealed: bool

    @property
    def most_bytes(self) -> int:
        """How large it may be."""
        most = self.manifest.limits.summary_bytes
        return most + BUCKET_BYTES + OVERHEAD_BYTES if self.is_sealed else most


def expected(session: Session, announced: Announced) -> Wanted | None:
    """Return what the run's summary must conform to; None if these bytes are stored.

    Raises:
        HansaError: ``RUN_UNKNOWN``, ``PROTOCOL_VIOLATION`` (another attempt),
            ``SUMMARY_CONFLICT``, or ``SUMMARY_CORRUPT`` (announced too large).
    """
    awaited = _awaited(session, announced)
    if awaited.stored is not None:
        return None
    is_sealed = parse_job(awaited.payload).recipient_key is not None
    wanted = Wanted(manifest_of(session, awaited.analysis_digest), is_sealed)
    if announced.size > wanted.most_bytes:
        raise HansaError(Reason.SUMMARY_CORRUPT, "The summary is larger than its manifest allows.", field="size")
    return wanted


def _awaited(session: Session, announced: Announced) -> Awaited:
    awaited = JobRepository(session).awaited(announced.run_id)
    if awaited is None or awaited.node != announced.node:
        raise HansaError(Reason.RUN_UNKNOWN)
    if announced.attempt != awaited.attempt:
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The summary is of another attempt.", field="attempt")
    if (awaited.stored or awaited.announced or announced.digest) != announced.digest:
        _log.error("summary_conflict", run_id=announced.run_id, node=announced.node)
        raise HansaError(Reason.SUMMARY_CONFLICT)
    return awaited


def _read(content: bytes, wanted: Wanted, announced: Announced) -> NewSummary:
    if wanted.is_sealed:
        # Whether it has figures, and what they are, only its reader will know.
        if not is_sealed_size(len(content)):
            raise HansaError(Reason.SUMMARY_CORRUPT, "This is not a sealed summary.", field="size")
        return NewSummary(run_id=announced.run_id, digest=announced.digest, content=content, empty=False)
    summary = parse_summary(content, wanted.manifest.summary, released_only=True)
    return NewSummary(
        run_id=announced.run_id,
        digest=announced.digest,
        content=content,
        empty=not any(array.cells for array in summary.arrays.values()),
    )


def _store(session: Session, announced: Announced, summary: NewSummary, turn: Turn) -> tuple[None, Changed]:
    # Asked again, because another upload of the run may have come in between.
    awaited = _awaited(session, announced)
    if awaited.stored is not None:
        return None, Changed()
    SummaryRepository(session).add(summary, turn.now)
    _log.info("summary_stored", job_id=awaited.job_id, node=awaited.node, size=len(summary.content))
    changed = Changed(jobs=frozenset({awaited.job_id}))
    if not may_end_a_job(awaited.state):
        return None, changed
    return None, settle(session, awaited.job_id, turn) | changed
