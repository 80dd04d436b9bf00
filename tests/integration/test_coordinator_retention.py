"""What the coordinator deletes of its outboxes, each node has had for thirty days. On both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from coordinator.store.database import Database
from coordinator.store.job_models import COMMANDS
from coordinator.store.outboxes import CommandRepository
from hansa.contract.retention import KEPT_AFTER_ACK
from tests.support.job_world import add_node
from tests.support.stores import empty_store_url, postgres, store

pytestmark = pytest.mark.slow
__all__ = ["empty_store_url", "postgres", "store"]

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
COUNT = 6


def begin(session: Session) -> None:
    for node in ("FI", "ES"):
        add_node(session, node)
        for number in range(COUNT):
            CommandRepository(session).append(node, b"command %d" % number, START)


def held(session: Session) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in session.execute(sa.select(COMMANDS.c.node, COMMANDS.c.seq).order_by(COMMANDS.c.seq)):
        found.setdefault(row.node, []).append(row.seq)
    return found


def prune(session: Session, now: datetime) -> int:
    return CommandRepository(session).prune(now - KEPT_AFTER_ACK)


def test_commands_go_thirty_days_after_their_acknowledgement_and_the_rest_stays(store: Database) -> None:
    store.run_sync(begin)
    store.run_sync(lambda session: CommandRepository(session).acknowledge("FI", 4, START))
    assert store.run_sync(partial(prune, now=START + DAY * 30)) == 0  # not a day too early
    assert store.run_sync(partial(prune, now=START + DAY * 31)) == 3
    assert store.run_sync(held) == {"FI": [4, 5, 6], "ES": [1, 2, 3, 4, 5, 6]}
    assert store.run_sync(lambda session: CommandRepository(session).hash_at("FI", 4)) != b""


def test_what_a_restored_node_lacks_is_owed_to_it_again(store: Database) -> None:
    store.run_sync(begin)
    store.run_sync(lambda session: CommandRepository(session).acknowledge("FI", COUNT, START))
    store.run_sync(lambda session: CommandRepository(session).owe("FI", after=2))
    store.run_sync(partial(prune, now=START + DAY * 300))
    assert store.run_sync(held)["FI"] == [2, 3, 4, 5, 6]
    pending = store.run_sync(lambda session: CommandRepository(session).pending("FI", after=2, limit=9))
    assert [command.seq for command in pending] == [3, 4, 5, 6]
