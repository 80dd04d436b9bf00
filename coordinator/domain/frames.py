"""The frames of a node's session as plain values, without protobuf.

``coordinator/api/frames.py`` translates to and from the wire; everything that
is decided about a session is decided on these.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hansa.contract.envelope import Signed
from hansa.contract.outbox import Head
from hansa.contract.states import RunState
from hansa.contract.witnessing import NO_NEWS, LogNews


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first frame of a session."""

    protocol: int
    instance_id: str
    store_uuid: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadProof:
    """The node's answer to ``Welcome``, under the new epoch."""

    epoch: int
    nonce: bytes
    event_head: Head
    hash_at_event_cursor: bytes
    command_cursor: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An entry of the node's outbox. ``body`` is as stored and hashed."""

    epoch: int
    seq: int
    prev_hash: bytes
    body: bytes
    effect: Effect


@dataclass(frozen=True, slots=True)
class CommandAck:
    """The node has applied the commands up to ``upto_seq``."""

    epoch: int
    upto_seq: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The node is alive. ``wall`` is the time that its clock shows; ``conditions`` what it says of itself."""

    epoch: int
    monotonic_ms: int
    log: LogNews = NO_NEWS
    wall: datetime | None = None
    conditions: tuple[str, ...] = ()


NodeFrame = Hello | HeadProof | Event | CommandAck | Heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReported:
    """A run at the node has come to a new state. Texts are not checked yet."""

    run_id: str
    attempt: int
    execution: int
    state: RunState
    reason: str
    incident: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryReleased:
    """The run's summary was released; its bytes come by upload. ``statement`` is None where there is no whole one."""

    run_id: str
    attempt: int
    execution: int
    digest: bytes
    statement: Signed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLogged:
    """The release's entry stands in the node's log, by a checkpoint that we have cosigned."""

    run_id: str
    attempt: int
    checkpoint: bytes
    index: int
    entry: bytes
    inclusion: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """One dataset of an inventory. ``node`` is empty or the reporting node."""

    dataset_id: str
    node: str
    build: str
    snapshot: str


@dataclass(frozen=True, slots=True)
class InventoryReported:
    """All datasets that the node offers now."""

    datasets: tuple[Offered, ...]


@dataclass(frozen=True, slots=True)
class JobReported:
    """A job that the node knows and we may have forgotten. ``job`` is None where it has not one signature."""

    job: Signed | None


Effect = RunReported | SummaryReleased | ReleaseLogged | InventoryReported | JobReported


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The coordinator's answer to ``Hello``."""

    epoch: int
    nonce: bytes
    store_uuid: str
    generation: int
    event_cursor: Head
    command_head: Head
    # The last command that the node is known to have applied.
    command_base: Head
    # Our time when it was written.
    wall: datetime | None = None


@dataclass(frozen=True, slots=True)
class CommandFrame:
    """An entry of the node's command outbox, as stored."""

    epoch: int
    seq: int
    prev_hash: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class EventAck:
    """The coordinator has applied the events up to ``upto_seq``."""

    epoch: int
    upto_seq: int


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The echo of a heartbeat."""

    monotonic_ms: int
    wall: datetime
    log: LogNews = NO_NEWS


@dataclass(frozen=True, slots=True)
class Fenced:
    """The session has lost its standing. ``reason`` is an error reason."""

    by_epoch: int
    reason: str


CoordinatorFrame = Welcome | CommandFrame | EventAck | HeartbeatReply | Fenced


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A command: take this run. ``job`` is as its researcher signed it."""

    run_id: str
    job_id: str
    round: int
    attempt: int
    job: Signed


@dataclass(frozen=True, slots=True)
class Cancel:
    """A command: nobody waits for this run any more."""

    run_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class TrustUpdate:
    """A command: another version of the trust repository is in force; look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run of the node as it is recorded here; ``statement`` is what the node signed of its release."""

    run_id: str
    attempt: int
    execution: int
    state: RunState
    reason: str
    incident: str
    statement: Signed | None


@dataclass(frozen=True, slots=True)
class Reconcile:
    """A command: adopt what is recorded, then report every run again.

    ``more`` of it follows; ``generation`` is that of the node's store which it
    is for.
    """

    runs: tuple[RecordedRun, ...] = ()
    more: bool = False
    generation: int = 0


CommandBody = Offer | Cancel | TrustUpdate | Reconcile
