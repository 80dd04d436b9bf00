"""Frames of a node's session, to and from the wire. What cannot be read is refused here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from coordinator.api.messages import timestamp
from coordinator.domain import frames as plain
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import HEARTBEAT
from hansa.contract.outbox import Head
from hansa.contract.states import RunState
from hansa.contract.witnessing import LogNews
from hansa.runtime.reading import read_message
from hansa.v1 import node_service_pb2 as wire
from hansa.v1 import types_pb2

_HASH_BYTES: Final = 32


async def read_frames(messages: AsyncIterator[wire.NodeFrame]) -> AsyncIterator[plain.NodeFrame]:
    """Yield the frames in ``messages``.

    Raises:
        HansaError: ``PROTOCOL_VIOLATION``, a frame without content or a hash
            that is none; ``MALFORMED`` or ``MESSAGE_TOO_LARGE``, an event that
            cannot be read.
    """
    async for message in messages:
        yield node_frame(message)


def node_frame(message: wire.NodeFrame) -> plain.NodeFrame:
    """Return what the node sent.

    Raises:
        HansaError: as ``read_frames``.
    """
    match message.WhichOneof("frame"):
        case "hello":
            return _hello(message.hello)
        case "head_proof":
            return _head_proof(message.head_proof)
        case "event":
            return _event(message.event)
        case "command_ack":
            return plain.CommandAck(message.command_ack.epoch, message.command_ack.upto_seq)
        case "heartbeat":
            beat = message.heartbeat
            return plain.Heartbeat(beat.epoch, beat.monotonic_ms, _log_news(beat), _wall(beat), _conditions(beat))
        case _:
            raise _violation("frame")


def _conditions(beat: wire.Heartbeat) -> tuple[str, ...]:
    """Return the conditions that we know, each once; a later release may have others."""
    return tuple(name for name, number in types_pb2.Node.Condition.items() if number and number in beat.conditions)


def _wall(beat: wire.Heartbeat) -> datetime | None:
    if not beat.HasField("wall"):
        return None
    try:
        return beat.wall.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise _violation("wall") from error


def _log_news(message: wire.Heartbeat) -> LogNews:
    return LogNews(
        checkpoint=message.log_checkpoint,
        proven_from=message.log_consistency_from,
        proof=tuple(message.log_consistency),
        witnessed_size=message.witnessed_size,
        cosignature=message.cosignature,
    )


def _hello(hello: wire.Hello) -> plain.Hello:
    return plain.Hello(
        protocol=hello.protocol,
        instance_id=hello.instance_id,
        store_uuid=hello.store_uuid,
        generation=hello.generation,
    )


def _head_proof(proof: wire.HeadProof) -> plain.HeadProof:
    return plain.HeadProof(
        epoch=proof.epoch,
        nonce=proof.nonce,
        event_head=_head(proof.event_head),
        hash_at_event_cursor=proof.hash_at_event_cursor,
        command_cursor=_head(proof.command_cursor),
    )


def _head(head: wire.Head) -> Head:
    if head.seq == 0 and not head.hash:
        return Head()
    if len(head.hash) != _HASH_BYTES:
        raise _violation("hash")
    return Head(head.seq, head.hash)


def _event(event: wire.Event) -> plain.Event:
    return plain.Event(
        epoch=event.epoch,
        seq=event.seq,
        prev_hash=event.prev_hash,
        body=event.body,
        effect=_effect(event.body),
    )


def _effect(body: bytes) -> plain.Effect:
    parsed = read_message(wire.EventBody, body)
    match parsed.WhichOneof("body"):
        case "run_reported":
            return _run_reported(parsed.run_reported)
        case "summary_released":
            return _summary_released(parsed.summary_released)
        case "release_logged":
            return _release_logged(parsed.release_logged)
        case "job_reported":
            return plain.JobReported(_statement(parsed.job_reported.job))
        case "inventory_reported":
            return plain.InventoryReported(tuple(_offered(d) for d in parsed.inventory_reported.datasets))
        case _:
            raise _violation("body")


def _statement(envelope: types_pb2.Envelope) -> Signed | None:
    return signed_of(envelope) if len(envelope.signatures) == 1 else None


def _run_reported(report: wire.RunReported) -> plain.RunReported:
    try:
        state = RunState(types_pb2.Run.State.Name(report.state))
    except ValueError as error:
        raise _violation("state") from error
    return plain.RunReported(
        run_id=report.run_id,
        attempt=report.attempt,
        execution=report.execution,
        state=state,
        reason=report.reason,
        incident=report.incident,
    )


def _summary_released(released: wire.SummaryReleased) -> plain.SummaryReleased:
    return plain.SummaryReleased(
        run_id=released.run_id,
        attempt=released.attempt,
        execution=released.execution,
        digest=released.summary_digest,
        statement=_statement(released.statement),
    )


def _release_logged(logged: wire.ReleaseLogged) -> plain.ReleaseLogged:
    return plain.ReleaseLogged(
        run_id=logged.run_id,
        attempt=logged.attempt,
        checkpoint=logged.checkpoint,
        index=logged.index,
        entry=logged.entry,
        inclusion=tuple(logged.inclusion),
    )


def _offered(dataset: types_pb2.Dataset) -> plain.Offered:
    return plain.Offered(
        dataset_id=dataset.dataset_id, node=dataset.node, build=dataset.build, snapshot=dataset.snapshot
    )


def _violation(field: str) -> HansaError:
    return HansaError(Reason.PROTOCOL_VIOLATION, "The frame cannot be read.", field=field)


def coordinator_frame(frame: plain.CoordinatorFrame) -> wire.CoordinatorFrame:
    """Return the message for the node."""
    match frame:
        case plain.Welcome():
            return wire.CoordinatorFrame(welcome=_welcome(frame))
        case plain.CommandFrame(epoch, seq, prev_hash, body):
            command = wire.Command(epoch=epoch, seq=seq, prev_hash=prev_hash, body=body)
            return wire.CoordinatorFrame(command=command)
        case plain.EventAck(epoch, upto_seq):
            return wire.CoordinatorFrame(event_ack=wire.EventAck(epoch=epoch, upto_seq=upto_seq))
        case plain.HeartbeatReply():
            return wire.CoordinatorFrame(heartbeat_reply=_heartbeat_reply(frame))
        case plain.Fenced(by_epoch, reason):
            return wire.CoordinatorFrame(fenced=wire.Fenced(by_epoch=by_epoch, reason=reason))


def _heartbeat_reply(reply: plain.HeartbeatReply) -> wire.HeartbeatReply:
    return wire.HeartbeatReply(
        echo_monotonic_ms=reply.monotonic_ms,
        wall=timestamp(reply.wall),
        log_checkpoint=reply.log.checkpoint,
        log_consistency_from=reply.log.proven_from,
        log_consistency=reply.log.proof,
        witnessed_size=reply.log.witnessed_size,
        cosignature=reply.log.cosignature,
    )


def _welcome(welcome: plain.Welcome) -> wire.Welcome:
    return wire.Welcome(
        epoch=welcome.epoch,
        nonce=welcome.nonce,
        store_uuid=welcome.store_uuid,
        generation=welcome.generation,
        event_cursor=wire.Head(seq=welcome.event_cursor.seq, hash=welcome.event_cursor.hash),
        command_head=wire.Head(seq=welcome.command_head.seq, hash=welcome.command_head.hash),
        heartbeat_seconds=int(HEARTBEAT.total_seconds()),
        wall=timestamp(welcome.wall),
        command_base=wire.Head(seq=welcome.command_base.seq, hash=welcome.command_base.hash),
    )


def command_bytes(command: plain.CommandBody, issued_at: datetime) -> bytes:
    """Return a command as it is stored, hashed and sent."""
    body = wire.CommandBody(issued_at=timestamp(issued_at))
    match command:
        case plain.Offer():
            offer = wire.Offer(
                run_id=command.run_id,
                job_id=command.job_id,
                round=command.round,
                attempt=command.attempt,
                job=envelope_message(command.job),
            )
            body.offer.CopyFrom(offer)
        case plain.Cancel(run_id, attempt):
            body.cancel.CopyFrom(wire.Cancel(run_id=run_id, attempt=attempt))
        case plain.TrustUpdate():
            body.trust_update.CopyFrom(wire.TrustUpdate())
        case plain.Reconcile(runs, more, generation):
            recorded = [_recorded(run) for run in runs]
            body.reconcile.CopyFrom(wire.Reconcile(runs=recorded, more=more, generation=generation))
    return body.SerializeToString(deterministic=True)


def _recorded(run: plain.RecordedRun) -> wire.RecordedRun:
    return wire.RecordedRun(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=run.execution,
        state=types_pb2.Run.State.Value(run.state),
        reason=run.reason,
        incident=run.incident,
        statement=envelope_message(run.statement) if run.statement is not None else None,
    )


def envelope_message(signed: Signed) -> types_pb2.Envelope:
    """Return a signed payload as an envelope with its one signature."""
    signature = types_pb2.Signature(key_id=signed.key_id, signature=signed.signature)
    return types_pb2.Envelope(payload_type=signed.payload_type, payload=signed.payload, signatures=[signature])


def signed_of(envelope: types_pb2.Envelope) -> Signed:
    """Return what an envelope with exactly one signature holds.

    Raises:
        HansaError: ``ENVELOPE_INVALID``.
    """
    if len(envelope.signatures) != 1:
        raise HansaError(Reason.ENVELOPE_INVALID, "A job has exactly one signature.", field="signatures")
    signature = envelope.signatures[0]
    return Signed(envelope.payload_type, envelope.payload, signature.key_id, signature.signature)
