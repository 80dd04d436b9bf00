"""Between the node's rows and the wire's messages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head
from hansa.contract.receipt import subject_digest
from hansa.contract.statement import parse_statement
from hansa.contract.witnessing import LogNews
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.audit.witness import ProvenRelease
from node_agent.store.models import DatasetRow, RunRow


def timestamp(moment: datetime) -> Timestamp:
    """Return ``moment``, which is aware, as the wire has it."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(stamp: Timestamp) -> datetime:
    """Return the aware time that the coordinator wrote.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``; it is none.
    """
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise HansaError(Reason.PROTOCOL_VIOLATION, log="no time") from error


def head_message(head: Head) -> node_service_pb2.Head:
    """Return a place in a chain as the wire has it."""
    return node_service_pb2.Head(seq=head.seq, hash=head.hash)


def head_of(message: node_service_pb2.Head) -> Head:
    """Return the place in a chain that ``message`` names."""
    return Head(message.seq, message.hash)


def log_news_of(reply: node_service_pb2.HeartbeatReply) -> LogNews:
    """Return what the coordinator says of the logs."""
    return LogNews(
        checkpoint=reply.log_checkpoint,
        proven_from=reply.log_consistency_from,
        proof=tuple(reply.log_consistency),
        witnessed_size=reply.witnessed_size,
        cosignature=reply.cosignature,
    )


def put_log_news(beat: node_service_pb2.Heartbeat, news: LogNews) -> None:
    """Write what the node says of the logs into a heartbeat."""
    beat.log_checkpoint, beat.log_consistency_from = news.checkpoint, news.proven_from
    beat.log_consistency.extend(news.proof)
    beat.witnessed_size, beat.cosignature = news.witnessed_size, news.cosignature


class WireReporter:
    """Makes event bodies; the ``Reporter`` of the running agent."""

    def __init__(self, node: str) -> None:
        """Take the node that reports."""
        self._node = node

    def run(self, run: RunRow, now: datetime) -> bytes:
        """Return a ``RunReported`` of the run's present state."""
        report = node_service_pb2.RunReported(
            run_id=run.run_id,
            attempt=run.attempt,
            execution=run.execution,
            state=types_pb2.Run.State.Value(run.state),
            reason=run.reason,
            incident=run.incident,
        )
        body = node_service_pb2.EventBody(occurred_at=timestamp(now), run_reported=report)
        return body.SerializeToString(deterministic=True)

    def released(self, run: RunRow, outgoing: bytes | None, statement: Signed, now: datetime) -> bytes:
        """Return a ``SummaryReleased`` with the signed statement."""
        report = node_service_pb2.SummaryReleased(
            run_id=run.run_id,
            attempt=run.attempt,
            execution=run.execution,
            summary_digest=_subject(statement) if outgoing is None else hashlib.sha256(outgoing).digest(),
            summary_size=len(outgoing or b""),
            statement=_envelope(statement),
        )
        body = node_service_pb2.EventBody(occurred_at=timestamp(now), summary_released=report)
        return body.SerializeToString(deterministic=True)

    def job(self, run: RunRow, now: datetime) -> bytes:
        """Return a ``JobReported`` of the run's job."""
        signed = Signed(run.payload_type, run.payload, run.key_id, run.signature)
        reported = node_service_pb2.JobReported(job=_envelope(signed))
        body = node_service_pb2.EventBody(occurred_at=timestamp(now), job_reported=reported)
        return body.SerializeToString(deterministic=True)

    def release_logged(self, proven: ProvenRelease, now: datetime) -> bytes:
        """Return a ``ReleaseLogged``."""
        logged = node_service_pb2.ReleaseLogged(
            run_id=proven.run_id,
            attempt=proven.attempt,
            checkpoint=proven.checkpoint,
            index=proven.index,
            entry=proven.entry,
            inclusion=proven.inclusion,
        )
        body = node_service_pb2.EventBody(occurred_at=timestamp(now), release_logged=logged)
        return body.SerializeToString(deterministic=True)

    def inventory(self, datasets: Sequence[DatasetRow], now: datetime) -> bytes:
        """Return an ``InventoryReported``: ids, builds and digests, nothing counted."""
        report = node_service_pb2.InventoryReported(
            datasets=[
                types_pb2.Dataset(dataset_id=row.dataset_id, node=self._node, build=row.build, snapshot=row.snapshot)
                for row in datasets
            ]
        )
        body = node_service_pb2.EventBody(occurred_at=timestamp(now), inventory_reported=report)
        return body.SerializeToString(deterministic=True)


def _envelope(signed: Signed) -> types_pb2.Envelope:
    signature = types_pb2.Signature(key_id=signed.key_id, signature=signed.signature)
    return types_pb2.Envelope(payload_type=signed.payload_type, payload=signed.payload, signatures=[signature])


def _subject(statement: Signed) -> bytes:
    return bytes.fromhex(subject_digest(parse_statement(statement.payload)))
