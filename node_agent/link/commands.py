"""What the coordinator may ask of the node, applied once each.

A command, its effect and the cursor that says so are one transaction. Nothing
in a command relaxes a check: an offer is judged by the node's own policy, on
the bytes that the researcher signed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from sqlalchemy.orm import Session

from hansa.contract.delivery import Receiver
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.job import parse_job
from hansa.contract.outbox import Verdict
from hansa.contract.states import RunState
from hansa.runtime.reading import read_message
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.adoption import Author, Recorded, adopt_run, finish_adoption, is_written_for
from node_agent.offers import Offers, SignedOffer
from node_agent.reporting import Reporter, advance
from node_agent.run_facts import facts_of
from node_agent.run_rules import when_cancelled
from node_agent.store.models import RunRow
from node_agent.store.outbox import command_cursor, move_command_cursor, was_restored
from node_agent.telling import tell_everything

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a command led to; ``renew`` asks for a new certificate, ``trust`` for a look at the repository."""

    upto_seq: int
    renew: bool = False
    drain: bool = False
    trust: bool = False


@dataclass(slots=True)
class Wishes:
    """What the coordinator asked for and no run is about. Survives a session, not the agent."""

    # Until the next attach, no offer is accepted.
    draining: bool = False
    renew: asyncio.Event = field(default_factory=asyncio.Event)


class Commands:
    """Applies commands inside the caller's transaction."""

    def __init__(self, offers: Offers, reporter: Reporter) -> None:
        """Take who decides about offers, and who reports."""
        self._offers = offers
        self._reporter = reporter

    def apply(self, session: Session, command: node_service_pb2.Command, now: datetime) -> Applied:
        """Apply ``command`` unless it was applied before.

        Raises:
            HansaError: ``PROTOCOL_VIOLATION``; a command is missing, cannot be
                read, or another history stands here. ``VERSION_UNSUPPORTED``; a
                kind of command that this release does not know. Nothing was
                applied.
        """
        receiver = Receiver(command_cursor(session))
        verdict = receiver.judge(command.seq, command.prev_hash)
        if verdict is Verdict.REPEAT:
            return Applied(receiver.cursor.seq)
        if verdict is not Verdict.APPLY:
            raise HansaError(Reason.PROTOCOL_VIOLATION, log=f"command {command.seq}: {verdict.name}")
        try:
            body = read_message(node_service_pb2.CommandBody, command.body)
        except HansaError as error:
            raise HansaError(Reason.PROTOCOL_VIOLATION, log=f"command {command.seq} cannot be read") from error
        applied = self._effect(session, body, command.seq, now)
        move_command_cursor(session, receiver.applied(command.body))
        return applied

    def _effect(self, session: Session, body: node_service_pb2.CommandBody, seq: int, now: datetime) -> Applied:
        kind = body.WhichOneof("body")
        _log.info("command_received", kind=kind, seq=seq)
        if kind == "offer":
            self._offers.receive(session, _signed(body.offer), now)
        elif kind == "cancel":
            self._cancel(session, body.cancel, now)
        elif kind == "reconcile":
            self._reconcile(session, body.reconcile, now)
        elif kind not in ("drain", "renew_now", "trust_update"):
            raise HansaError(Reason.VERSION_UNSUPPORTED, log=f"command {seq} of an unknown kind")
        return Applied(seq, renew=kind == "renew_now", drain=kind == "drain", trust=kind == "trust_update")

    def _cancel(self, session: Session, cancel: node_service_pb2.Cancel, now: datetime) -> None:
        run = session.get(RunRow, cancel.run_id)
        if run is None:
            return
        for due in when_cancelled(facts_of(run), cancel.attempt):
            advance(session, run, due.event, reporter=self._reporter, now=now, reason=due.reason or "")

    def _reconcile(self, session: Session, reconcile: node_service_pb2.Reconcile, now: datetime) -> None:
        situation = self._offers.situation
        author = Author(situation.site.node, situation.keys.signing if situation.keys is not None else "")
        if is_written_for(session, reconcile.generation):
            for run in reconcile.runs:
                adopt_run(session, _recorded(run), author, now)
            if not reconcile.more:
                finish_adoption(session, now)
        if not reconcile.more:
            # Where the coordinator was restored too: what was told at an attach was dropped with the outbox of then.
            tell_everything(session, self._reporter, now, with_jobs=was_restored(session))


def is_offer(command: node_service_pb2.Command) -> bool:
    """Say whether the command offers a job; one that cannot be read does not."""
    try:
        return read_message(node_service_pb2.CommandBody, command.body).HasField("offer")
    except HansaError:
        return False


def directory_wanted(command: node_service_pb2.Command) -> int:
    """Return the version of the directory that an offered job names; 0 where none is offered.

    Nothing is verified yet: who only claims a version has us look for it.
    """
    try:
        body = read_message(node_service_pb2.CommandBody, command.body)
        return parse_job(body.offer.job.payload).directory_version if body.HasField("offer") else 0
    except HansaError:
        return 0


def _signed(offer: node_service_pb2.Offer) -> SignedOffer:
    job = _envelope(offer.job)
    return SignedOffer(
        run_id=offer.run_id,
        job_id=offer.job_id,
        round=offer.round,
        attempt=offer.attempt,
        payload_type=job.payload_type,
        payload=job.payload,
        key_id=job.key_id,
        signature=job.signature,
        addenda=tuple(_envelope(one) for one in offer.addenda),
    )


def _recorded(run: node_service_pb2.RecordedRun) -> Recorded:
    return Recorded(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=run.execution,
        state=RunState(types_pb2.Run.State.Name(run.state)) if run.state else RunState.OFFERED,
        reason=run.reason if run.reason in set(RunReason) else "",
        incident=run.incident if run.incident.isascii() else "",
        statement=_envelope(run.statement) if run.HasField("statement") else None,
    )


def _envelope(message: types_pb2.Envelope) -> Signed:
    """Return the envelope; with none or several signatures it is one that nobody has signed."""
    signatures = message.signatures
    alone = signatures[0] if len(signatures) == 1 else types_pb2.Signature()
    return Signed(message.payload_type, message.payload, alone.key_id, alone.signature)
