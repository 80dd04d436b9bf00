"""Verifying the coordinator's log from outside, with coordinators that lie in every place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract.digests import canonical, keyed_hash
from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hash
from hansa.contract.notes import Checkpoint, coordinator_origin, cosign, node_origin, sign_checkpoint
from hansa.contract.raw_keys import key_text
from hansa.sdk.audit import Leaf
from hansa.sdk.log_check import LogTrust, prove, verify_log

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LOG, FI, ES = (Ed25519PrivateKey.generate() for _ in range(3))
PAGE = 200


def leaf(index: int, subject: str = "") -> Leaf:
    """Return a true entry."""
    salt, subject = index.to_bytes(32, "big"), subject or f"N{index}"
    body = {
        "v": 2,
        "at": NOW.isoformat(timespec="microseconds"),
        "action": "node_invited",
        "facts": {},
        "actor": keyed_hash(salt, "actor", "olga"),
        "subject": keyed_hash(salt, "subject", subject),
    }
    return Leaf(index, canonical(body), index + 1, NOW.replace(tzinfo=None), "olga", "node_invited", subject, salt)


@dataclass
class MemoryLog:
    """A coordinator that tells what the test wants; its tree is of ``told`` unless the test forged it."""

    told: list[Leaf]
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    note: bytes = b""
    calls: int = 0

    def sign(self, *cosigners: tuple[str, Ed25519PrivateKey], size: int | None = None) -> MemoryLog:
        """Grow the tree over what is told, and sign it."""
        tree, count = Frontier(), len(self.told) if size is None else size
        self.nodes = {}
        for one in self.told[:count]:
            self.nodes.update({(n.level, n.index): n.hash for n in tree.append(leaf_hash(one.body))})
        at = Checkpoint(coordinator_origin("demo"), count, tree.root())
        lines = [cosign(at, name=node_origin("demo", node), key=key, seconds=1) for node, key in cosigners]
        self.note = sign_checkpoint(at, LOG).plus(*lines).to_bytes()
        return self

    async def leaves(self, start: int) -> Sequence[Leaf]:
        self.calls += 1
        return self.told[start : start + PAGE]

    async def checkpoint(self) -> bytes:
        return self.note

    async def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        return inclusion_proof(index, size, lambda level, at: self.nodes[level, at])

    async def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        self.calls += 1
        return consistency_proof(old, new, lambda level, at: self.nodes[level, at])


TRUST = LogTrust(
    "demo",
    key_text(LOG.public_key()),
    {"FI": key_text(FI.public_key()), "ES": key_text(ES.public_key())},
)


def log(size: int) -> MemoryLog:
    return MemoryLog([leaf(index) for index in range(size)])


@pytest.mark.parametrize("size", [1, 2, 199, 200, 201, 1000])
async def test_a_true_log_verifies_with_its_cosignatures_counted(size: int) -> None:
    found = await verify_log(log(size).sign(("FI", FI), ("ES", ES)), TRUST, None)
    assert (found.size, found.fault, found.first_wrong) == (size, "", None)
    assert (found.cosigned, found.needed) == (("ES", "FI"), 2)


async def test_cosignatures_of_others_or_by_other_keys_do_not_count() -> None:
    found = await verify_log(log(3).sign(("FI", ES), ("GB", FI)), TRUST, None)
    assert found.cosigned == ()


@pytest.mark.parametrize("wrong", [0, 1, 199, 200, 201, 399, 400, 776, 998, 999])
async def test_a_leaf_that_was_changed_after_it_was_signed_is_named_exactly(wrong: int) -> None:
    source = log(1000).sign()
    source.told[wrong] = leaf(wrong, subject="somebody else")
    found = await verify_log(source, TRUST, None)
    assert found.first_wrong == wrong + 1
    # By some proofs, not by one for each of the entries.
    assert source.calls < 40


@pytest.mark.parametrize(
    "lie",
    [
        lambda one: replace(one, subject="somebody else"),
        lambda one: replace(one, actor="eve"),
        lambda one: replace(one, action="node_revoked"),
        lambda one: replace(one, at=one.at.replace(year=2020)),
        lambda one: replace(one, number=one.number + 1),
        lambda one: replace(one, salt=b""),
        lambda one: replace(one, body=b"no entry"),
    ],
)
async def test_words_that_are_not_those_that_were_hashed_are_named_exactly(lie: Callable[[Leaf], Leaf]) -> None:
    source = log(300).sign()
    source.told[250] = lie(source.told[250])
    assert (await verify_log(source, TRUST, None)).first_wrong == 251


@pytest.mark.parametrize("change", ["missing", "repeated"])
async def test_a_missing_or_repeated_leaf_is_named(change: str) -> None:
    source = log(300).sign()
    source.told[250:251] = [] if change == "missing" else [source.told[249], source.told[250]]
    assert (await verify_log(source, TRUST, None)).first_wrong is not None


async def test_an_erased_entry_is_sound_and_counted() -> None:
    source = log(5).sign()
    source.told[2] = replace(source.told[2], actor="", subject="", salt=b"")
    found = await verify_log(source, TRUST, None)
    assert (found.first_wrong, found.erased) == (None, 1)


async def test_a_log_must_continue_what_was_verified_last_time() -> None:
    source = log(7).sign()
    first = await verify_log(source, TRUST, None)
    source.told += [leaf(index) for index in range(7, 20)]
    second = await verify_log(source.sign(), TRUST, first.note)
    assert (second.fault, second.since) == ("", 7)
    rewritten = MemoryLog([leaf(0, "somebody else"), *(leaf(index) for index in range(1, 20))]).sign()
    for source in (rewritten, log(6).sign()):
        assert "does not continue" in (await verify_log(source, TRUST, first.note)).fault


async def test_a_checkpoint_of_another_key_or_federation_is_refused() -> None:
    for trust in (replace(TRUST, log_key=key_text(FI.public_key())), replace(TRUST, federation="other")):
        with pytest.raises(HansaError) as caught:
            await verify_log(log(3).sign(), trust, None)
        assert caught.value.reason is Reason.NOTE_INVALID


async def test_a_proof_of_one_entry_is_verified_before_it_is_shown() -> None:
    source = log(30).sign()
    found = await prove(source, TRUST, 12)
    assert (found["number"], found["index"], found["size"]) == (12, 11, 30)
    source.told[11] = leaf(11, "somebody else")
    for number, reason in ((12, Reason.LOG_FORKED), (31, Reason.LOG_ENTRY_UNKNOWN)):
        with pytest.raises(HansaError) as caught:
            await prove(source, TRUST, number)
        assert caught.value.reason is reason
