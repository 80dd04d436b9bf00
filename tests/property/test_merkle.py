"""The audit logs' trees: known roots, and proofs that nothing but the truth passes."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.merkle import (
    EMPTY_ROOT,
    Frontier,
    HashAt,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots of the certificate transparency project's own tests.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: list[bytes]) -> bytes:
    """Return the root by the words of RFC 9162, 2.1.1, from the leaves' data."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


def data(size: int) -> list[bytes]:
    return [f"entry {number}".encode() for number in range(size)]


def stored(leaves: list[bytes]) -> HashAt:
    """Return the store of a log that was filled leaf by leaf."""
    frontier, held = Frontier(), {}
    for leaf in leaves:
        for subtree in frontier.append(leaf_hash(leaf)):
            assert (subtree.level, subtree.index) not in held
            held[subtree.level, subtree.index] = subtree.hash
    return lambda level, index: held[level, index]


HASH_AT = stored(data(64))
NAIVE = [naive_root(data(size)) for size in range(65)]


@pytest.mark.parametrize("size", range(9))
def test_the_known_leaves_have_the_known_roots(size: int) -> None:
    assert root_at(size, stored(LEAVES[:size])).hex() == ROOTS[size]


def test_every_size_has_the_root_that_the_standard_defines_also_while_the_log_grows_on() -> None:
    assert [root_at(size, HASH_AT) for size in range(65)] == NAIVE
    assert NAIVE[0] == EMPTY_ROOT


def test_every_leaf_of_every_size_is_proved_and_only_at_its_place() -> None:
    for size in range(1, 65):
        for index in range(size):
            proof = inclusion_proof(index, size, HASH_AT)
            leaf = HASH_AT(0, index)
            assert verify_inclusion(leaf, index, size, proof, NAIVE[size])
            elsewhere = [(index + 1, size), (index - 1, size), (index, index), (-1, size)]
            assert not any(verify_inclusion(leaf, i, n, proof, NAIVE[size]) for i, n in elsewhere)


def test_every_earlier_size_is_proved_to_be_the_beginning() -> None:
    for new in range(65):
        for old in range(new + 1):
            proof = consistency_proof(old, new, HASH_AT)
            assert verify_consistency(old, new, proof, old_root=NAIVE[old], new_root=NAIVE[new])


def test_a_history_that_was_rewritten_is_consistent_with_no_proof_of_either() -> None:
    other = stored([b"forged", *data(64)[1:]])
    for old, new in pairwise((1, 2, 3, 7, 8, 13, 32, 33, 64)):
        for proof in (consistency_proof(old, new, HASH_AT), consistency_proof(old, new, other)):
            forged = root_at(new, other)
            assert not verify_consistency(old, new, proof, old_root=NAIVE[old], new_root=forged)


@given(st.data())
def test_one_flipped_bit_in_a_proof_is_always_detected(draw: st.DataObject) -> None:
    new = draw.draw(st.integers(2, 64))
    old = draw.draw(st.integers(1, new - 1))
    inclusion, consistency = inclusion_proof(old, new, HASH_AT), consistency_proof(old, new, HASH_AT)
    for proof in (inclusion, consistency):
        place, bit = draw.draw(st.integers(0, len(proof) - 1)), draw.draw(st.integers(0, 255))
        wrong = bytearray(proof[place])
        wrong[bit // 8] ^= 1 << bit % 8
        bad = (*proof[:place], bytes(wrong), *proof[place + 1 :])
        assert not verify_inclusion(HASH_AT(0, old), old, new, bad, NAIVE[new])
        assert not verify_consistency(old, new, bad, old_root=NAIVE[old], new_root=NAIVE[new])


@given(st.data())
def test_a_proof_that_is_longer_shorter_or_in_another_order_is_refused(draw: st.DataObject) -> None:
    new = draw.draw(st.integers(2, 64))
    old = draw.draw(st.integers(1, new - 1))
    leaf = HASH_AT(0, old)
    inclusion, consistency = inclusion_proof(old, new, HASH_AT), consistency_proof(old, new, HASH_AT)
    for change in ("longer", "shorter", "turned"):
        for proof in (inclusion, consistency):
            bad = {"longer": (*proof, leaf), "shorter": proof[:-1], "turned": proof[::-1]}[change]
            if bad == proof:
                continue
            assert not verify_inclusion(leaf, old, new, bad, NAIVE[new]) or bad == inclusion
            assert not verify_consistency(old, new, bad, old_root=NAIVE[old], new_root=NAIVE[new]) or bad == consistency


@given(st.integers(-2, 70), st.integers(-2, 70), st.lists(st.binary(min_size=32, max_size=32), max_size=9))
def test_what_is_made_up_is_refused_and_never_a_crash(old: int, new: int, proof: list[bytes]) -> None:
    root = NAIVE[new] if 0 <= new <= 64 else b"\7" * 32
    made_up = bytes(32)
    assert not verify_inclusion(made_up, old, new, proof, root)
    assert not verify_consistency(old, new, proof, old_root=made_up, new_root=root)


def test_a_leaf_is_never_mistaken_for_two_subtrees() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)


def test_what_the_log_does_not_hold_has_no_proof() -> None:
    for index, size in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="leaf"):
            inclusion_proof(index, size, HASH_AT)
    for old, new in ((4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="size"):
            consistency_proof(old, new, HASH_AT)
