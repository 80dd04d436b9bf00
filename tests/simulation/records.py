"""What the simulated stores hold: plain values, with the production records where there are some."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from coordinator.domain.records import JobRecord, RunRecord
from hansa.contract.attach import NodeSeen
from hansa.contract.envelope import Signed
from hansa.contract.outbox import Head
from node_agent.run_rules import RunFacts
from tests.simulation.rules import Rules


def pack(value: Any) -> bytes:
    """Return the bytes of an entry; the same value gives the same bytes."""
    return pickle.dumps(value, protocol=5)


def unpack(body: bytes) -> Any:
    """Return what ``pack`` was given."""
    return pickle.loads(body)  # noqa: S301 - written by this process


def digest_of(data: bytes) -> bytes:
    """Return the SHA-256 of ``data``."""
    return hashlib.sha256(data).digest()


@dataclass(frozen=True)
class Entry:
    """An entry of an outbox."""

    seq: int
    prev: bytes
    hash: bytes
    body: bytes
    at: datetime


@dataclass
class Outbox:
    """A sender's outbox: the place before its first entry, and the entries that are kept."""

    base: Head = field(default_factory=Head)
    entries: list[Entry] = field(default_factory=list)
    # When which number was acknowledged, oldest first.
    acks: list[tuple[datetime, int]] = field(default_factory=list)

    @property
    def head(self) -> Head:
        """The last entry's place."""
        return Head(self.entries[-1].seq, self.entries[-1].hash) if self.entries else self.base

    def append(self, body: bytes, at: datetime) -> None:
        """Add an entry."""
        head = self.head
        after = head.after(body)
        self.entries.append(Entry(after.seq, head.hash, after.hash, body, at))

    def hash_at(self, seq: int) -> bytes:
        """Return the hash of entry ``seq``; empty if it is not kept."""
        if seq == self.base.seq:
            return self.base.hash
        found = self.entry(seq)
        return b"" if found is None else found.hash

    def entry(self, seq: int) -> Entry | None:
        """Return entry ``seq``, if it is kept."""
        place = seq - self.entries[0].seq if self.entries else -1
        return self.entries[place] if 0 <= place < len(self.entries) else None

    def after(self, seq: int, limit: int) -> list[Entry]:
        """Return at most ``limit`` entries that come after ``seq``."""
        if not self.entries or limit <= 0:
            return []
        place = max(seq + 1 - self.entries[0].seq, 0)
        return self.entries[place : place + limit]

    def acknowledged(self, upto: int, now: datetime) -> None:
        """Note that the receiver has the entries up to ``upto``, and no later ones."""
        self.acks = [(at, seq) for at, seq in self.acks if seq <= upto]
        if not self.acks or self.acks[-1][1] < upto:
            self.acks.append((now, upto))

    def prune(self, rules: Rules, now: datetime) -> None:
        """Let go of what the rules say may go."""
        acked = self.acks[-1][1] if self.acks else 0
        old = max((seq for at, seq in self.acks if at < now - rules.keep), default=0)
        below = rules.prune_below(head=self.head.seq, acked=acked, old=old)
        while self.entries and self.entries[0].seq < below:
            del self.entries[0]


@dataclass(frozen=True)
class Question:
    """What a job asks: its id, who is to answer, and until when."""

    job_id: str
    nodes: tuple[str, ...]
    quorum: int
    not_after: datetime
    # Tells two questions of one id apart.
    salt: str = ""

    def signed(self) -> Signed:
        """Return the job as its researcher signed it."""
        return Signed("job", pack(self), "ada", b"signature")

    def run_id(self, node: str) -> str:
        """Return the name of a node's run; both sides compute it."""
        return f"{self.job_id}/{node}"


def question_of(signed: Signed) -> Question:
    """Return what a signed job asks."""
    found: Question = unpack(signed.payload)
    return found


@dataclass
class Member:
    """What the coordinator keeps of a node."""

    store: NodeSeen
    quarantined: str = ""
    epoch: int = 0
    connected: bool = False
    since: datetime | None = None
    commands: Outbox = field(default_factory=Outbox)
    acked: int = 0
    received: list[bytes] = field(default_factory=list)


@dataclass
class CoordinatorState:
    """The coordinator's store."""

    members: dict[str, Member]
    generation: int = 1
    digests: dict[str, bytes] = field(default_factory=dict)
    signed: dict[str, Signed] = field(default_factory=dict)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    job_of: dict[str, str] = field(default_factory=dict)
    statements: dict[str, Signed] = field(default_factory=dict)
    announced: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Outgoing:
    """A released summary at its node: what leaves, what was signed of it, and whether it has arrived."""

    content: bytes | None
    statement: Signed
    uploaded: bool = False


@dataclass
class NodeState:
    """A node's store."""

    uuid: str
    generation: int = 1
    reconciled: int = 1
    coordinator: str = ""
    coordinator_generation: int = 1
    acked: int = 0
    commands: Head = field(default_factory=Head)
    events: Outbox = field(default_factory=Outbox)
    runs: dict[str, RunFacts] = field(default_factory=dict)
    jobs: dict[str, Signed] = field(default_factory=dict)
    outgoing: dict[str, Outgoing] = field(default_factory=dict)
    # Content that waits for people's decision.
    airlock: dict[str, bytes] = field(default_factory=dict)

    @property
    def is_reconciled(self) -> bool:
        """Whether the store knows what it released."""
        return self.reconciled >= self.generation

    def open_runs(self, *states: Any) -> Iterator[RunFacts]:
        """Yield the runs in one of ``states``."""
        return iter([run for run in self.runs.values() if run.state in states])


def statement_of(run: RunFacts, content: bytes, salt: str) -> Signed:
    """Return a node's signature over a release; no two signatures are the same."""
    return Signed("statement", pack((run.run_id, run.attempt, run.execution, digest_of(content), salt)), "node", b"s")


def subject_of(statement: Signed) -> bytes:
    """Return the digest of what a statement says has left."""
    found: bytes = unpack(statement.payload)[3]
    return found


def later(moment: datetime, seconds: float) -> datetime:
    """Return a moment some seconds later."""
    return moment + timedelta(seconds=seconds)
