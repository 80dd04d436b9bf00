"""What lies in the trust repository is read in its one form, or refused in words."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.digests import bundle_digest, bundle_listing, canonical, digest
from hansa.contract.directory import Directory, PassportIssuer, directory_bytes, parse_directory
from hansa.contract.errors import HansaError, Reason
from hansa.contract.listing import parse_listing
from hansa.contract.node_card import parse_card
from hansa.contract.raw_keys import key_text
from hansa.sdk.bundle import read_signed_bundle, write_bundle, write_vote
from hansa.trust import edits
from hansa.trust.files import SNAPSHOT, TIMESTAMP, read_files
from hansa.trust.online import OnlineKeys, renew_online
from tests.support.trust_world import GOOD_ANALYSIS, TrustWorld, build_trust_world

RAW = key_text(Ed25519PrivateKey.from_private_bytes(b"x" * 32).public_key())
START = datetime(2026, 1, 1, tzinfo=UTC)

# Lower case: paths that differ in case alone are refused.
names = st.from_regex(r"\A[a-z0-9_][a-z0-9._-]{0,8}\Z")
paths = (
    st.lists(names, min_size=1, max_size=3)
    .map("/".join)
    .filter(lambda path: path.split("/")[0] != "tests" and "__pycache__" not in path)
)


def one_tree(found: dict[str, bytes]) -> bool:
    """Say whether no file is another's folder."""
    return not any(other.startswith(f"{path}/") for path in found for other in found)


files = (
    st.dictionaries(paths, st.binary(max_size=20), max_size=4)
    .map(lambda found: {**found, "manifest.json": b"{}"})
    .filter(one_tree)
)


@given(files)
def test_a_bundle_s_list_is_read_as_it_was_written_and_names_the_bundle(content: dict[str, bytes]) -> None:
    listing = bundle_listing(content)
    assert digest(listing) == bundle_digest(content)
    found = parse_listing(listing)
    assert {path: (one.sha256, one.size) for path, one in found.items()} == {
        path: (hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()
    }


@given(files, st.data())
def test_a_list_with_another_byte_is_another_list_or_none(content: dict[str, bytes], data: st.DataObject) -> None:
    listing = bytearray(bundle_listing(content))
    listing[data.draw(st.integers(0, len(listing) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = parse_listing(bytes(listing))
    except HansaError as error:
        assert error.reason is Reason.MANIFEST_INVALID  # noqa: PT017 - either outcome is right
    else:
        assert found != parse_listing(bundle_listing(content))


@given(st.binary(max_size=200))
def test_any_bytes_are_no_list(data: bytes) -> None:
    with pytest.raises(HansaError):
        parse_listing(data)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "a//b",
        "./a",
        "a/..",
        "a\\b",
        "tests/x",
        "a/__pycache__/x",
        "",
        "a" * 65,
        ".hidden",
        7,
        None,
        "é",
    ],
)
def test_a_list_names_plain_paths_alone(path: Any) -> None:
    entries = [{"path": "manifest.json", "sha256": "0" * 64, "size": 1}, {"path": path, "sha256": "0" * 64, "size": 1}]
    for order in (entries, entries[::-1]):
        with pytest.raises(HansaError):
            parse_listing(canonical({"v": 1, "files": order}))


@pytest.mark.parametrize("size", [-1, True, "1", None, 1 << 25])
def test_a_size_is_a_size(size: Any) -> None:
    with pytest.raises(HansaError):
        parse_listing(canonical({"v": 1, "files": [{"path": "manifest.json", "sha256": "0" * 64, "size": size}]}))


def test_a_card_is_read_with_its_own_fingerprint_alone() -> None:
    key = "A" * 43 + "="
    card = {"v": 1, "node": "FI", "signing_key": key, "agreement_key": key, "tls_fingerprint": digest(b"tls")}
    whole = {**card, "fingerprint": digest(canonical(card))}
    assert parse_card(json.dumps(whole).encode()).node == "FI"
    for name in whole:
        changed = {**whole, name: "ES" if name == "node" else digest(b"other")}
        with pytest.raises(HansaError) as caught:
            parse_card(json.dumps(changed).encode())
        assert caught.value.reason is Reason.DIRECTORY_INVALID


# --- the directory -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> TrustWorld:
    return build_trust_world()


def test_a_directory_is_read_as_it_was_written(world: TrustWorld) -> None:
    assert parse_directory(directory_bytes(world.directory)) == world.directory


def test_an_entry_is_added_once_replaced_on_demand_and_removed(world: TrustWorld) -> None:
    ada = world.directory.person("ada")
    assert ada is not None
    without = edits.without_entry(world.directory, "person", "ada")
    assert without.person("ada") is None
    assert edits.with_entry(without, ada).person("ada") == ada
    with pytest.raises(HansaError):
        edits.with_entry(world.directory, ada)
    moved = ada.model_copy(update={"organisation": "elsewhere"})
    assert edits.with_entry(world.directory, moved, replace=True).person("ada") == moved
    with pytest.raises(HansaError):
        edits.without_entry(without, "person", "ada")


def test_a_node_that_leaves_witnesses_no_more(world: TrustWorld) -> None:
    left = edits.without_entry(world.directory, "node", "FI")
    assert "FI" not in left.witnesses
    with pytest.raises(HansaError):
        edits.with_witness(left, "FI")


def test_one_key_has_one_bearer(world: TrustWorld) -> None:
    ada = world.directory.person("ada")
    assert ada is not None
    with pytest.raises(HansaError) as caught:
        edits.with_entry(world.directory, ada.model_copy(update={"name": "ada2"}))
    assert caught.value.reason is Reason.DIRECTORY_INVALID


def test_what_changed_is_told_completely(world: TrustWorld) -> None:
    changed = edits.without_entry(edits.without_witness(world.directory, "ES"), "project", "lactose")
    assert sorted(edits.differences(world.directory, changed)) == ["removed project lactose", "removed witness ES"]
    assert list(edits.differences(world.directory, world.directory)) == []
    empty = Directory(federation="demo", version=1, coordinator_log_key=world.directory.coordinator_log_key)
    told = list(edits.differences(empty, world.directory))
    entries = len(world.directory.people) + len(world.directory.nodes) + len(world.directory.witnesses) + 1
    assert len(told) == entries


# --- what the coordinator signs ------------------------------------------------------------------


def test_a_timestamp_is_renewed_without_a_new_snapshot_until_half_its_life_is_gone(world: TrustWorld) -> None:
    files, start = world.files, world.now
    first = (files.newest(SNAPSHOT), files.metadata_file(TIMESTAMP))
    files = renew_online(files, world.online, start + timedelta(hours=1))
    assert files.newest(SNAPSHOT) == first[0]
    assert files.metadata_file(TIMESTAMP) != first[1]
    later = renew_online(files, world.online, start + timedelta(days=4))
    assert later.newest(SNAPSHOT) == first[0] + 1


def test_other_online_keys_than_the_root_s_sign_nothing(world: TrustWorld) -> None:
    swapped = OnlineKeys(world.keys["timestamp"], world.keys["snapshot"])
    with pytest.raises(HansaError) as caught:
        renew_online(world.files, swapped, world.now)
    assert caught.value.reason is Reason.KEY_INVALID


def test_files_are_read_as_they_were_written_and_strangers_are_passed_over(world: TrustWorld, tmp_path: Path) -> None:
    world.files.write(tmp_path)
    (tmp_path / "metadata" / "0.root.json").write_bytes(b"x")
    (tmp_path / "metadata" / "notes.txt").write_bytes(b"x")
    (tmp_path / "targets" / "abc").write_bytes(b"x")
    assert read_files(tmp_path) == world.files


# --- bundles in folders --------------------------------------------------------------------------


def test_a_bundle_is_read_as_it_was_written_with_its_votes(world: TrustWorld, tmp_path: Path) -> None:
    bundle = world.bundles[0]
    write_bundle(tmp_path / "bundle", bundle)
    assert read_signed_bundle(tmp_path / "bundle") == bundle
    rejected = world.vote(bundle, "rev2", verdict="reject")
    write_vote(tmp_path / "bundle", rejected.votes["rev2"])
    assert read_signed_bundle(tmp_path / "bundle") == rejected
    with pytest.raises(HansaError) as caught:
        write_bundle(tmp_path / "bundle", bundle)
    assert caught.value.reason is Reason.FILE_INVALID
    with pytest.raises(HansaError):
        read_signed_bundle(GOOD_ANALYSIS)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("people", {"recipient_key": RAW}),
        ("people", {"recipient_key": None}),
        ("people", {"signing_key": RAW}),
        ("people", {"organisation": "elsewhere"}),
        ("nodes", {"signing_key": RAW}),
        ("nodes", {"agreement_key": RAW}),
        ("projects", {"sealed": True}),
        ("projects", {"valid_until": START + timedelta(hours=1)}),
        ("issuers", {"jwks": {"keys": [{"kty": "OKP", "x": "b"}]}}),
    ],
)
def test_whatever_is_swapped_in_a_draft_its_signers_are_told(
    world: TrustWorld, kind: str, change: dict[str, Any]
) -> None:
    """Else a key that summaries are sealed to could be exchanged on the way between two signers."""
    honest = edits.with_entry(
        world.directory,
        PassportIssuer(issuer="https://issuer.example", jwks={"keys": [{"kty": "OKP", "x": "a"}]}),
    )
    honest = edits.changed(honest, projects=[one.model_copy(update={"valid_until": START}) for one in honest.projects])
    entries = getattr(honest, kind)
    chosen = [one for one in entries if getattr(one, "name", "ada") == "ada"][:1]
    swapped = edits.changed(
        honest,
        **{kind: [one.model_copy(update=change) if one in chosen else one for one in entries]},
    )
    before, after = (set(edits.differences(None, one)) for one in (honest, swapped))
    assert before != after
