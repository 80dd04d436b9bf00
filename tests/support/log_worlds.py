"""A coordinator's store and nodes' stores that exchange what heartbeats say of the audit logs."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy import text
from sqlalchemy.orm import Session

from coordinator.domain.frames import Hello
from coordinator.domain.membership import NodeEvent
from coordinator.services.desk import Turn
from coordinator.services.witnessing import Exchanged, Heard, LogKeeper, exchange
from coordinator.store.audit import AuditRepository
from coordinator.store.database import Database as CoordinatorStore
from coordinator.store.federation import create_federation
from coordinator.store.nodes import NodeRepository
from coordinator.store.schema import migrate
from coordinator.store.sessions import SessionRepository
from hansa.contract.directory import Directory, DirectoryNode
from hansa.contract.ids import NodeId
from hansa.contract.raw_keys import key_text
from hansa.contract.witnessing import NO_NEWS, LogNews
from node_agent.audit.entries import Entry, policy_changed
from node_agent.audit.log import append
from node_agent.audit.witness import LogWitness, ProvenRelease, Told, WitnessKeys
from node_agent.store.database import Database as NodeStore
from node_agent.store.outbox import found_store

FEDERATION = "demo"
START = datetime(2026, 5, 1, 12, tzinfo=UTC)


@dataclass
class Clock:
    """Moves when it is told to."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class LoggingNode:
    """A node's store with its witness, and the session's memory."""

    name: str
    path: Path
    key: Ed25519PrivateKey
    clock: Clock
    coordinator_key: Ed25519PublicKey
    database: NodeStore = field(init=False)
    witness: LogWitness = field(init=False)
    told: Told = field(default_factory=Told)
    epoch: int = 1
    proven: list[ProvenRelease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Open the store, as the agent does at its start."""
        self.database = NodeStore.open(self.path)
        self.database._transact(lambda session: found_store(session, str(uuid4())))
        keys = WitnessKeys(
            federation=FEDERATION,
            node=self.name,
            own=self.key,
            coordinator=lambda: self.coordinator_key,
            report=self._report,
        )
        self.witness = LogWitness(self.database, keys, self.clock)
        asyncio.run(self.witness.begin())
        self.told = Told()

    def _report(self, proven: ProvenRelease, _now: datetime) -> bytes:
        self.proven.append(proven)
        return b"proof"

    def decide(self, count: int = 1, entry: Entry | None = None) -> None:
        """Let the node's log grow."""
        for _ in range(count):
            made = entry or policy_changed("sha256:" + uuid4().hex * 2, "olga")
            self.database._transact(lambda session: append(session, made, self.clock()))  # noqa: B023

    def back_up(self) -> Path:
        """Return a copy of the store as it is now."""
        copy = self.path.with_suffix(".backup")
        copy.unlink(missing_ok=True)
        with sqlite3.connect(copy) as target, sqlite3.connect(self.path) as source:
            source.backup(target)
        return copy

    def restore(self, copy: Path) -> None:
        """Put a backup in the store's place, and start again."""
        self.database.close()
        for old in self.path.parent.glob(f"{self.path.name}*"):
            if old != copy:
                old.unlink()
        shutil.copy(copy, self.path)
        self.open()


@dataclass
class LogWorld:
    """One coordinator and its nodes."""

    folder: Path
    database: CoordinatorStore
    clock: Clock = field(default_factory=Clock)
    log_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    nodes: dict[str, LoggingNode] = field(default_factory=dict)
    witnesses: tuple[str, ...] = ()

    @property
    def directory(self) -> Directory:
        nodes = tuple(
            DirectoryNode(
                node=node.name,
                organisation="institute",
                signing_key=key_text(node.key.public_key()),
                agreement_key=key_text(X25519PrivateKey.generate().public_key()),
            )
            for node in self.nodes.values()
        )
        return Directory(
            federation=FEDERATION,
            version=1,
            coordinator_log_key=key_text(self.log_key.public_key()),
            nodes=nodes,
            witnesses=self.witnesses,
        )

    @property
    def keeper(self) -> LogKeeper:
        return LogKeeper(FEDERATION, self.log_key, lambda _session: self.directory)

    @property
    def turn(self) -> Turn:
        return Turn(self.clock(), lambda _command, _at: b"")

    def run(self, work: Any) -> Any:
        return self.database.run_sync(work)

    def act(self, count: int = 1, **more: Any) -> None:
        """Let the coordinator's log grow."""

        def work(session: Session) -> None:
            for number in range(count):
                AuditRepository(session).append(
                    at=self.clock(), actor="olga", action="node_invited", subject=f"N{number}", **more
                )

        self.run(work)

    def join(self, name: str, *, witness: bool = True) -> LoggingNode:
        """Return a node that is connected, with an epoch."""
        path = self.folder / f"{name}.db"
        node = LoggingNode(name, path, Ed25519PrivateKey.generate(), self.clock, self.log_key.public_key())
        self.nodes[name] = node
        if witness:
            self.witnesses = (*self.witnesses, name)

        def work(session: Session) -> None:
            nodes = NodeRepository(session)
            nodes.add(NodeId(name))
            nodes.apply(name, NodeEvent.REDEEM)
            nodes.apply(name, NodeEvent.CONFIRM)
            hello = Hello(protocol=1, instance_id="i", store_uuid="s", generation=1)
            SessionRepository(session).open_epoch(name, 1, hello)
            SessionRepository(session).connect(name, self.clock())

        self.run(work)
        return node

    def take(self, node: LoggingNode, news: LogNews, told: int = 0) -> Exchanged:
        """Give the coordinator what a node says; return what it answers."""
        heard = Heard(NodeId(node.name), node.epoch, news, told)
        exchanged: Exchanged = self.run(lambda session: exchange(session, self.keeper, heard, self.turn))
        return exchanged

    def beat(self, node: LoggingNode, **changes: Any) -> Exchanged:
        """Exchange one heartbeat and its reply, whole."""
        news = replace(asyncio.run(node.witness.news(node.told)), **changes)
        answer = self.take(node, news)
        if not answer.quarantined:
            asyncio.run(node.witness.hear(answer.answer, node.told))
        return answer

    def settle(self, rounds: int = 5) -> None:
        """Let all nodes beat until all that was there has been witnessed."""
        for _ in range(rounds):
            for node in self.nodes.values():
                self.beat(node)

    def audit(self) -> list[str]:
        """Return the actions in the coordinator's log."""
        return [
            row[0] for row in self.run(lambda s: s.execute(text('SELECT action FROM audit ORDER BY "index"')).all())
        ]


@contextmanager
def log_world(database: CoordinatorStore, folder: Path) -> Iterator[LogWorld]:
    """Hand out a world on an empty, migrated coordinator's store."""
    database.run_sync(lambda session: create_federation(session, name=FEDERATION, store_uuid=str(uuid4())))
    world = LogWorld(folder, database)
    try:
        yield world
    finally:
        for node in world.nodes.values():
            node.database.close()


__all__ = ["NO_NEWS", "LogWorld", "LoggingNode", "log_world", "migrate"]
