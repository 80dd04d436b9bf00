"""Proofs of any entry among a million, from the stores of a node and of a coordinator.

The trees are put into the stores in bulk; what is measured is what serves a
proof: one transaction that reads the hashes and makes the proof. Each proof is
verified against the root, outside of the measured time.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert
from sqlalchemy.orm import Session

from coordinator.store.audit import AuditRepository
from coordinator.store.database import Database as CoordinatorStore
from coordinator.store.people_models import AuditLeafRow, AuditNodeRow, AuditRow
from coordinator.store.schema import migrate
from hansa.contract.merkle import Frontier, leaf_hash, verify_consistency, verify_inclusion
from node_agent.audit import log as node_log
from node_agent.store import models as node_models
from node_agent.store.database import Database as NodeStore

ENTRIES = 1_000_000
PROOFS = 2_000
_BATCH = 20_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MARK_MS = 5.0

Write = Callable[[Connection, list[tuple[int, bytes, bytes]], list[dict[str, Any]]], None]


@contextmanager
def folder() -> Iterator[Path]:
    """A scratch folder; gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="hansa-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def body(index: int) -> bytes:
    """Return an entry of the usual size."""
    return json.dumps({"v": 2, "action": "bench", "facts": {"n": index, "digest": f"sha256:{index:064x}"}}).encode()


def grow(run: Callable[[Callable[[Session], None]], None], write: Write) -> Frontier:
    """Fill a store in bulk; return the tree's edge."""
    tree = Frontier()
    while tree.size < ENTRIES:
        leaves: list[tuple[int, bytes, bytes]] = []
        nodes: list[dict[str, Any]] = []
        for index in range(tree.size, min(tree.size + _BATCH, ENTRIES)):
            entry = body(index)
            first, *above = tree.append(leaf_hash(entry))
            leaves.append((index, entry, first.hash))
            nodes += [{"level": node.level, "index": node.index, "hash": node.hash} for node in above]
        run(lambda session: write(session.connection(), leaves, nodes))  # noqa: B023 - called at once
    return tree


def write_node(connection: Connection, leaves: list[tuple[int, bytes, bytes]], nodes: list[dict[str, Any]]) -> None:
    """Put entries into a node's store."""
    rows = [{"index": index, "at": NOW, "body": entry, "leaf_hash": found} for index, entry, found in leaves]
    connection.execute(insert(node_models.AuditLeafRow), rows)
    connection.execute(insert(node_models.AuditNodeRow), nodes)


def write_coordinator(
    connection: Connection, leaves: list[tuple[int, bytes, bytes]], nodes: list[dict[str, Any]]
) -> None:
    """Put entries into a coordinator's store."""
    acts = [{"index": i + 1, "at": NOW, "actor": "a", "action": "bench", "subject": "s"} for i, _, _ in leaves]
    rows = [
        {"index": index + 1, "salt": b"s" * 32, "body": entry, "leaf_hash": found, "job": None}
        for index, entry, found in leaves
    ]
    connection.execute(insert(AuditRow), acts)
    connection.execute(insert(AuditLeafRow), rows)
    connection.execute(insert(AuditNodeRow), nodes)


def measure(prove: Callable[[int], tuple[bytes, ...]], root: bytes, kind: str) -> dict[str, float]:
    """Return the milliseconds of proofs at random places."""
    places = random.Random(7)
    spent = []
    for _ in range(PROOFS):
        index = places.randrange(ENTRIES)
        began = time.perf_counter()
        proof = prove(index)
        spent.append((time.perf_counter() - began) * 1000)
        if not verify_inclusion(leaf_hash(body(index)), index, ENTRIES, proof, root):
            raise RuntimeError(f"the {kind}'s proof of {index} is none")
    cuts = statistics.quantiles(spent, n=100)
    return {f"{kind}_proof_ms_p50": round(cuts[49], 3), f"{kind}_proof_ms_p99": round(cuts[98], 3)}


def of_node(path: Path) -> dict[str, float]:
    """Measure a node's store."""
    database = NodeStore.open(path / "node.db")
    try:
        root = grow(database._transact, write_node).root()

        def prove(index: int) -> tuple[bytes, ...]:
            return database._transact(lambda session: node_log.prove_inclusion(session, index, ENTRIES))

        return measure(prove, root, "node")
    finally:
        database.close()


def of_coordinator(path: Path) -> dict[str, float]:
    """Measure a coordinator's store, and one proof of consistency for each hundredth of it."""
    database = CoordinatorStore.open(f"sqlite:///{path / 'coordinator.db'}")
    try:
        migrate(database)
        root = grow(database.run_sync, write_coordinator).root()

        def prove(index: int) -> tuple[bytes, ...]:
            return database.run_sync(lambda session: AuditRepository(session).inclusion(index, ENTRIES))

        found = measure(prove, root, "coordinator")
        return {**found, "coordinator_consistency_ms_p50": _consistency(database, root)}
    finally:
        database.close()


def _consistency(database: CoordinatorStore, root: bytes) -> float:
    spent = []
    for old in range(ENTRIES // 100 - 1, ENTRIES, ENTRIES // 100):
        began = time.perf_counter()
        proof = database.run_sync(lambda session: AuditRepository(session).consistency(old, ENTRIES))  # noqa: B023
        spent.append((time.perf_counter() - began) * 1000)
        before = database.run_sync(lambda session: AuditRepository(session).root(old))  # noqa: B023
        if not verify_consistency(old, ENTRIES, proof, old_root=before, new_root=root):
            raise RuntimeError(f"the proof from {old} is none")
    return round(statistics.median(spent), 3)


def main() -> int:
    """Print the report."""
    with folder() as path:
        report = {"entries": ENTRIES, "proofs": PROOFS, "mark_ms": MARK_MS, **of_node(path)}
    with folder() as path:
        report |= of_coordinator(path)
    report["within_mark"] = all(report[f"{kind}_proof_ms_p99"] <= MARK_MS for kind in ("node", "coordinator"))
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
