"""Checkpoints as signed notes: one form each, and nothing but the true signature passes."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import EMPTY_ROOT, Frontier, consistency_proof, leaf_hash
from hansa.contract.notes import (
    MOST_LEAVES,
    Checkpoint,
    check_proof,
    coordinator_origin,
    cosign,
    cosigned_at,
    node_origin,
    open_checkpoint,
    parse_line,
    parse_note,
    sign_checkpoint,
)
from hansa.contract.witnessing import Growth, Seen, growth, needed_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ORIGIN, WITNESS = coordinator_origin("demo"), node_origin("demo", "FI")
AT = Checkpoint(ORIGIN, 7, hashlib.sha256(b"root").digest())
checkpoints = st.builds(
    Checkpoint,
    st.sampled_from([ORIGIN, WITNESS, "example.org/node/GB-2"]),
    st.integers(0, MOST_LEAVES),
    st.binary(min_size=32, max_size=32),
)


def refused(data: bytes) -> None:
    with pytest.raises(HansaError) as caught:
        parse_note(data)
    assert caught.value.reason is Reason.NOTE_INVALID


def test_a_note_is_written_as_the_specification_says() -> None:
    # Signed with another implementation's steps, from C2SP's signed-note and tlog-checkpoint.
    body = b"demo/coordinator\n7\n" + base64.b64encode(AT.root) + b"\n"
    key_hash = hashlib.sha256(b"demo/coordinator\n\x01" + KEY.public_key().public_bytes_raw()).digest()[:4]
    line = "— demo/coordinator ".encode() + base64.b64encode(key_hash + KEY.sign(body)) + b"\n"
    assert sign_checkpoint(AT, KEY).to_bytes() == body + b"\n" + line


def test_the_specifications_own_example_of_an_ed25519_key_id_is_reproduced() -> None:
    # golang.org/x/mod/sumdb/note: the public verifier key of PeterNeumann in its documentation.
    key = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert hashlib.sha256(b"PeterNeumann\n" + key).digest()[:4].hex() == "c74f20a3"


def test_a_cosignature_is_written_as_the_specification_says() -> None:
    line = cosign(AT, name=WITNESS, key=OTHER, seconds=1_700_000_000)
    signed = b"cosignature/v1\ntime 1700000000\n" + AT.body()
    key_hash = hashlib.sha256(b"demo/node/FI\n\x04" + OTHER.public_key().public_bytes_raw()).digest()[:4]
    assert line.key_hash == key_hash
    assert line.signature == (1_700_000_000).to_bytes(8, "big") + OTHER.sign(signed)


@given(checkpoints, st.integers(0, 2**63))
def test_what_is_written_is_read_and_verified(checkpoint: Checkpoint, seconds: int) -> None:
    line = cosign(checkpoint, name=WITNESS, key=OTHER, seconds=seconds)
    note = sign_checkpoint(checkpoint, KEY).plus(line)
    read = open_checkpoint(note.to_bytes(), origin=checkpoint.origin, key=KEY.public_key())
    assert (read, read.to_bytes()) == (note, note.to_bytes())
    assert cosigned_at(checkpoint, parse_line(line.to_bytes()), name=WITNESS, key=OTHER.public_key()) == seconds


@given(st.data())
def test_a_note_with_one_flipped_bit_is_refused_or_loses_its_signature(data: st.DataObject) -> None:
    note = sign_checkpoint(AT, KEY).plus(cosign(AT, name=WITNESS, key=OTHER, seconds=5)).to_bytes()
    place = data.draw(st.integers(0, len(note) * 8 - 1))
    changed = bytearray(note)
    changed[place // 8] ^= 1 << place % 8
    try:
        read = open_checkpoint(bytes(changed), origin=ORIGIN, key=KEY.public_key())
    except HansaError:
        return
    (line,) = (line for line in read.lines if line.name != ORIGIN)
    assert cosigned_at(read.checkpoint, line, name=WITNESS, key=OTHER.public_key()) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_order(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n7\n", b"\n07\n"),
        (b"\n7\n", b"\n+7\n"),
        (b"\n7\n", b"\n99999999999999999999\n"),
        (b"\n7\n", b"\n9223372036854775808\n"),
        (b"demo/coordinator\n7", b"demo/nobody\n7"),
        (b"demo/coordinator\n7", b"demo/coordinator \n7"),
        (b"\n\n", b"\n\n\n"),
        (b"\n\n", b"\nextension\n\n"),
        ("— ".encode(), b"- "),
        ("— ".encode(), "—  ".encode()),
        (b"=\n\n", b"\n\n"),
    ],
)
def test_a_note_has_one_form_only(old: bytes, new: bytes) -> None:
    note = sign_checkpoint(AT, KEY).to_bytes()
    assert old in note
    refused(note.replace(old, new, 1))


def test_a_note_without_or_with_the_same_signature_twice_or_too_long_is_refused() -> None:
    note = sign_checkpoint(AT, KEY)
    refused(AT.body() + b"\n")
    refused(note.to_bytes()[:-1])
    refused(note.plus(*note.lines).to_bytes())
    refused(note.to_bytes() + b"x" * (32 << 10))


def test_another_key_another_log_and_another_kind_of_signature_are_refused() -> None:
    note = sign_checkpoint(AT, KEY).to_bytes()
    for origin, key in ((ORIGIN, OTHER), (WITNESS, KEY)):
        with pytest.raises(HansaError):
            open_checkpoint(note, origin=origin, key=key.public_key())
    # A cosignature in the place of a log's own signature, and the other way round.
    own = cosign(AT, name=ORIGIN, key=KEY, seconds=5)
    with pytest.raises(HansaError):
        open_checkpoint(AT.body() + b"\n" + own.to_bytes(), origin=ORIGIN, key=KEY.public_key())
    (line,) = sign_checkpoint(AT, KEY).lines
    assert cosigned_at(AT, line, name=ORIGIN, key=KEY.public_key()) is None


def test_a_proof_is_of_whole_hashes_and_bounded() -> None:
    check_proof((b"x" * 32,) * 65)
    for proof in ((b"x" * 31,), (b"x" * 32,) * 66):
        with pytest.raises(HansaError) as caught:
            check_proof(proof)
        assert caught.value.reason is Reason.NOTE_INVALID


class Tree:
    """A log in memory."""

    def __init__(self, *words: str) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.roots = [EMPTY_ROOT]
        frontier = Frontier()
        for word in words:
            for node in frontier.append(leaf_hash(word.encode())):
                self.nodes[node.level, node.index] = node.hash
            self.roots.append(frontier.root())

    def at(self, size: int) -> Checkpoint:
        return Checkpoint(ORIGIN, size, self.roots[size])

    def proof(self, old: int, new: int) -> tuple[bytes, ...]:
        return consistency_proof(old, new, lambda level, index: self.nodes[level, index])


words = st.lists(st.text(max_size=3), min_size=1, max_size=20)


@given(words, st.data())
def test_a_log_that_only_grew_is_always_seen_to_have_grown(entries: list[str], data: st.DataObject) -> None:
    tree = Tree(*entries)
    new = data.draw(st.integers(0, len(entries)))
    old = data.draw(st.integers(0, new))
    seen = Seen(old, tree.roots[old])
    found = growth(seen, tree.at(new), proven_from=old, proof=tree.proof(old, new))
    assert found is (Growth.SAME if old == new else Growth.GROWN)


@given(words, st.data())
def test_a_log_that_forgot_or_changed_an_entry_is_always_seen_to_have_forked(
    entries: list[str], data: st.DataObject
) -> None:
    true = Tree(*entries)
    place = data.draw(st.integers(0, len(entries) - 1))
    forged = Tree(*entries[:place], entries[place] + "!", *entries[place + 1 :], *data.draw(st.lists(st.text())))
    seen = Seen(len(entries), true.roots[-1])
    size = data.draw(st.integers(0, len(forged.roots) - 1))
    begun = min(seen.size, size)
    found = growth(seen, forged.at(size), proven_from=seen.size, proof=forged.proof(begun, size))
    assert found is Growth.FORKED


def test_a_proof_from_another_size_is_asked_for_again_but_a_split_view_shows_without_any() -> None:
    true, other = Tree("a", "b", "c"), Tree("a", "x")
    seen = Seen(2, true.roots[2])
    assert growth(seen, true.at(3), proven_from=1, proof=true.proof(1, 3)) is Growth.UNPROVEN
    assert growth(seen, other.at(2), proven_from=1, proof=()) is Growth.FORKED
    assert growth(seen, true.at(1), proven_from=2, proof=()) is Growth.FORKED


def test_two_cosignatures_are_needed_where_there_are_two_witnesses() -> None:
    assert [needed_of(count) for count in range(4)] == [0, 1, 2, 2]
