"""A node's store put back to what it was: by an operator's restore, which raises the generation, or by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from hansa.runtime.sqlite import sqlite_module
from node_agent.store.outbox import store_row
from tests.support.agent import OPEN_POLICY, Bench, open_bench


def back_up(bench: Bench, to: Path) -> None:
    """Copy the bench's store as it is now to ``to``."""
    with bench.database._engine.connect() as connection:
        source = connection.connection.driver_connection
        target = sqlite_module().connect(str(to))
        assert source is not None
        source.backup(target)
        target.close()


def restore(bench: Bench, backup: Path, *, raised: bool = True, policy: Mapping[str, Any] = OPEN_POLICY) -> Bench:
    """Close the bench, put ``backup`` in the place of its store, and open it again."""
    bench.database.close()
    for name in ("-wal", "-shm"):
        Path(f"{bench.state.database}{name}").unlink(missing_ok=True)
    bench.state.database.write_bytes(backup.read_bytes())
    again = open_bench(bench.state, bench.world, policy)
    again.now = bench.now
    if raised:
        again.database._transact(raise_generation)
    return again


def raise_generation(session: Session) -> None:
    """Do what ``hansa-node restore`` does to the store's own row."""
    store_row(session).generation += 1
