"""What an outbox deletes is never asked for again, also by a receiver that was restored from a backup of thirty days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hansa.contract.generation import MOST_DRAWN, raised
from hansa.contract.outbox import Head
from hansa.contract.retention import KEPT_AFTER_ACK, prune_below

START = datetime(2026, 1, 1, tzinfo=UTC)


class Outbox(RuleBasedStateMachine):
    """A sender that prunes and notes acknowledgements late, and a receiver that makes backups."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.heads = [Head()]
        self.held: set[int] = set()
        self.acked_at: dict[int, datetime] = {}
        self.cursor = 0
        self.backups: list[tuple[datetime, int]] = [(START, 0)]

    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        for _ in range(count):
            self.heads.append(self.heads[-1].after(b"%d" % len(self.heads)))
            self.held.add(len(self.heads) - 1)

    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        self.cursor = data.draw(st.integers(self.cursor, len(self.heads) - 1))

    @rule(days=st.integers(0, 40))
    def wait(self, days: int) -> None:
        self.now += timedelta(days=days)

    @rule()
    def back_up(self) -> None:
        self.backups.append((self.now, self.cursor))

    @rule()
    def note_what_is_acknowledged_and_prune(self) -> None:
        # A receiver that was restored has less than it had: what it lacks counts as never acknowledged.
        self.acked_at = {seq: at for seq, at in self.acked_at.items() if seq <= self.cursor}
        for seq in range(1, self.cursor + 1):
            self.acked_at.setdefault(seq, self.now)
        before = self.now - KEPT_AFTER_ACK
        old = max((seq for seq, at in self.acked_at.items() if at < before and seq in self.held), default=0)
        acked = max((seq for seq in self.acked_at if seq in self.held), default=0)
        below = prune_below(head=len(self.heads) - 1, acked=acked, old=old)
        self.held = {seq for seq in self.held if seq >= below}

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        made, cursor = data.draw(st.sampled_from(self.backups))
        if self.now - made <= KEPT_AFTER_ACK:
            self.cursor = cursor

    @invariant()
    def the_cursor_can_be_proven_and_what_follows_it_can_be_sent(self) -> None:
        assert self.cursor == 0 or self.cursor in self.held
        assert all(seq in self.held for seq in range(self.cursor + 1, len(self.heads)))

    @invariant()
    def so_can_every_backup_that_is_young_enough(self) -> None:
        for made, cursor in self.backups:
            if self.now - made <= KEPT_AFTER_ACK:
                assert all(seq in self.held for seq in range(max(cursor, 1), len(self.heads)))

    @invariant()
    def the_last_entry_stays(self) -> None:
        last = len(self.heads) - 1
        assert last == 0 or last in self.held


TestOutbox = Outbox.TestCase


@given(known=st.lists(st.integers(0, 1 << 40), min_size=1), draw=st.integers(0, MOST_DRAWN - 1))
def test_a_restored_store_is_newer_than_all_that_is_known(known: list[int], draw: int) -> None:
    found = raised(*known, draw=draw)
    assert max(known) < found <= max(known) + MOST_DRAWN
