"""The outbox over a network that repeats, drops and reorders, and after a restored backup."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hansa.contract.digests import CHAIN_START, chain_hash
from hansa.contract.outbox import Head, Verdict, heads_agree, judge

Entry = tuple[int, bytes, bytes]  # number, hash of the one before, body


class Outbox:
    """A sender as both daemons have it, reduced to its memory."""

    def __init__(self, entries: list[Entry], heads: list[Head]) -> None:
        self.entries = entries
        self.heads = heads

    def append(self, body: bytes) -> None:
        head = self.heads[-1]
        self.entries.append((head.seq + 1, head.hash, body))
        self.heads.append(head.after(body))

    def backup(self, length: int) -> Outbox:
        return Outbox(self.entries[:length], self.heads[: length + 1])

    def hash_at(self, seq: int) -> bytes:
        return self.heads[seq].hash if seq < len(self.heads) else b""


class Link(RuleBasedStateMachine):
    """One sender, which may be restored from a backup, and one receiver."""

    def __init__(self) -> None:
        super().__init__()
        self.sender = Outbox([], [Head()])
        self.network: list[Entry] = []
        self.cursor = Head()
        self.applied: list[bytes] = []
        self.true_history = True
        self.count = 0

    @rule()
    def write(self) -> None:
        self.count += 1
        self.sender.append(b"%d" % self.count)

    @precondition(lambda self: self.sender.entries)
    @rule(data=st.data())
    def send_any(self, data: st.DataObject) -> None:
        self.network.append(data.draw(st.sampled_from(self.sender.entries)))

    @precondition(lambda self: self.network)
    @rule(data=st.data(), keep=st.booleans())
    def deliver(self, data: st.DataObject, keep: bool) -> None:
        place = data.draw(st.integers(0, len(self.network) - 1))
        seq, prev, body = self.network[place] if keep else self.network.pop(place)
        verdict = judge(self.cursor, seq=seq, prev_hash=prev)
        if verdict is Verdict.APPLY:
            assert seq == len(self.applied) + 1
            self.cursor = self.cursor.after(body)
            self.applied.append(body)
        elif verdict is Verdict.REPEAT:
            assert seq <= len(self.applied)
        elif verdict is Verdict.GAP:
            assert seq > len(self.applied) + 1
        else:
            assert not self.true_history

    @precondition(lambda self: self.sender.entries)
    @rule(data=st.data())
    def restore_a_backup(self, data: st.DataObject) -> None:
        self.sender = self.sender.backup(data.draw(st.integers(0, len(self.sender.entries) - 1)))
        self.network.clear()
        self.true_history = False

    @precondition(lambda self: self.sender.heads[-1].seq >= 0)
    @rule()
    def attach(self) -> None:
        bodies = [body for _, _, body in self.sender.entries]
        continues = bodies[: len(self.applied)] == self.applied
        agrees = heads_agree(self.cursor, self.sender.heads[-1], self.sender.hash_at(self.cursor.seq))
        assert agrees == continues

    @invariant()
    def what_was_applied_is_one_history(self) -> None:
        head = CHAIN_START
        for body in self.applied:
            head = chain_hash(head, body)
        assert self.cursor == Head(len(self.applied), head)
        if self.true_history:
            assert self.applied == [body for _, _, body in self.sender.entries][: len(self.applied)]


TestLink = Link.TestCase
