"""Each value of each file of the trust repository changed once, and old, frozen and mixed states served.

The client is the one that nodes and people have; the source is the evil
coordinator's mirror, which signs what it forges with the keys that lie at the
coordinator.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract.directory import Role, directory_bytes
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import utc_now
from hansa.trust.client import TrustClient
from hansa.trust.view import TrustView
from tests.support.evil_coordinator import Mirror
from tests.support.forged_metadata import Forger, keyid
from tests.support.json_mutants import JsonMutant, few_of_each, json_mutants, raw_mutants
from tests.support.siege import files_of
from tests.support.tally import report
from tests.support.trust_world import TrustWorld, build_trust_world

pytestmark = pytest.mark.slow

# Of each value; a refresh of the client takes some 25 ms.
MOST = 4
ROLES = ("root", "targets", "snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class MirrorSource:
    """A source that gives whatever the mirror has."""

    mirror: Mirror

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:
        return self._found(self.mirror.metadata(role, version), most_bytes)

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:
        return self._found(self.mirror.target(bytes.fromhex(sha256)), most_bytes)

    def _found(self, data: bytes | None, most_bytes: int) -> bytes:
        if data is None:
            raise HansaError(Reason.TRUST_UNKNOWN)
        return data[: most_bytes + 1]


@dataclass
class Bench:
    """A client that has verified the first version of everything, and a second one that is in force since."""

    world: TrustWorld
    folder: Path
    known: TrustView
    new: TrustView
    past: dict[str, bytes]
    now: datetime
    copies: int = 0

    def move_on(self) -> None:
        """Let the client take the news: what was known before is old now."""
        TrustClient(self.folder, self.world.root, MirrorSource(Mirror(files_of(self.world)))).refresh(self.now)
        self.known = self.new

    def client(self, files: dict[str, bytes]) -> TrustClient:
        """Return the client as it stood before the news, now asking the evil mirror."""
        self.copies += 1
        copy = shutil.copytree(self.folder, self.folder.with_name(f"copy-{self.copies}"))
        return TrustClient(copy, self.world.root, MirrorSource(Mirror(files)))

    def answer(self, files: dict[str, bytes], now: datetime | None = None) -> str:
        """Return the reason for which the client refuses ``files``, or "new" or "known" if they mean that state.

        Anything else that comes into force fails, and so does a refusal that
        leaves something behind.
        """
        client = self.client(files)
        try:
            view = client.refresh(now or self.now)
        except HansaError as error:
            assert says_the_same(client.load(self.now), self.known), "a refused state has changed what is in force"
            return error.reason.value
        found = "new" if says_the_same(view, self.new) else "known" if says_the_same(view, self.known) else ""
        assert found, "another state came into force"
        return found


def says_the_same(one: TrustView, other: TrustView) -> bool:
    return (one.directory, one.analyses) == (other.directory, other.analyses)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    world = build_trust_world(now=utc_now())
    past = files_of(world)
    folder = tmp_path / "client"
    known = TrustClient(folder, world.root, MirrorSource(Mirror(past))).refresh(world.now)
    world.publish_root(world.plan(), ("root1", "root2"))
    world.change(witnesses=("FI", "ES"))
    return Bench(world, folder, known, world.view, past, world.now)


def test_the_honest_news_come_into_force(bench: Bench) -> None:
    assert bench.answer(files_of(bench.world)) == "new"
    assert bench.answer(bench.past) == "known"


def forgeries(world: TrustWorld, role: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield by mutant the files of a mirror in which one role's metadata is changed: as found, and signed anew."""
    honest, forger = files_of(world), Forger(world)
    name = "metadata/timestamp.json" if role == "timestamp" else f"metadata/{world.files.newest(role)}.{role}.json"
    value = json.loads(honest[name])
    version = value["signed"]["version"]
    for mutant in _of_one_kind(json_mutants(value), value):
        yield f"{role}.{mutant.id}", {**honest, name: json.dumps(mutant.of(value)).encode()}
    for raw in raw_mutants(honest[name]):
        yield f"{role}.{raw.id}", {**honest, name: raw.edit(honest[name])}
    for mutant in _of_one_kind(json_mutants(value["signed"]), value):
        files, body = dict(honest), mutant.of(value["signed"])
        if role == "timestamp":
            files[name] = forger.signed(body, "timestamp")
        elif role == "snapshot":
            forger.put_snapshot(files, body)
        elif role == "targets":
            forger.put_targets(files, forger.signed(body, "snapshot", "timestamp"), version)
        else:
            body = {**body, "version": version + 1} if isinstance(body, dict) else body
            files[f"metadata/{version + 1}.root.json"] = forger.signed(body, "snapshot", "timestamp")
        yield f"{role}.signed-anew.{mutant.id}", files


def _of_one_kind(mutants: Iterator[JsonMutant], value: dict[str, Any]) -> Iterator[JsonMutant]:
    """Yield a few mutants of each value, but of a root's keys and of the targets' files, which are alike, those of a few only."""
    keys = sorted(value["signed"].get("keys", ()))[1:]
    paths = [
        path for path in value["signed"].get("targets", ()) if not path.endswith(("directory.json", "bundle.json"))
    ]
    alike = (*(f"keys.{keyid}" for keyid in keys), *(f"targets.{path}" for path in paths))
    return few_of_each((mutant for mutant in mutants if not any(part in mutant.path for part in alike)), MOST)


@pytest.mark.parametrize("role", ROLES)
def test_evil_every_value_of_a_roles_metadata_changed_once_is_refused_or_means_the_same(
    bench: Bench, role: str
) -> None:
    answers = {name: bench.answer(files) for name, files in forgeries(bench.world, role)}

    report(f"{role} metadata, each value changed once", Counter(answers.values()))
    assert len(answers) >= 60
    if role in ("root", "targets"):
        # Signed with on-line keys, nothing that people sign with theirs comes into force.
        assert not [name for name in answers if "signed-anew" in name and answers[name] == "new"]


def test_evil_every_file_of_the_repository_with_one_bit_flipped_is_refused(bench: Bench) -> None:
    honest = files_of(bench.world)
    answers: Counter[str] = Counter()
    for name in sorted({f"targets/{sha256}" for sha256 in bench.new.targets.values()}):
        data = honest[name]
        for place in (0, len(data) // 2, len(data) - 1):
            flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            folder = bench.folder.with_name(f"{name[8:16]}-{place}")
            client = TrustClient(folder, bench.world.root, MirrorSource(Mirror({**honest, name: flipped})))
            try:
                view = client.refresh(bench.now)
            except HansaError as error:
                answers[error.reason.value] += 1
            else:
                # A file of an analysis: then the analysis is not there.
                assert view.directory == bench.new.directory
                assert not view.analyses
                answers["the analysis is not there"] += 1
    report("files of the repository, one bit flipped", answers)


@pytest.mark.parametrize("kind", ["directory.json", "bundle.json", "author.dsse.json", "votes/rev1.dsse.json"])
def test_evil_every_value_of_a_signed_file_changed_once_is_refused(bench: Bench, kind: str) -> None:
    """Served in the place of the true file: what the coordinator can do to a directory, a bundle, or a vote."""
    honest = files_of(bench.world)
    sha256 = next(found for path, found in bench.new.targets.items() if path.endswith(kind))
    data = honest[f"targets/{sha256}"]
    changed = [json.dumps(mutant.of(json.loads(data))).encode() for mutant in json_mutants(json.loads(data))]
    changed += [raw.edit(data) for raw in raw_mutants(data)]
    answers: Counter[str] = Counter()

    for number, content in enumerate(changed[:: max(len(changed) // 60, 1)]):
        mirror = Mirror({**honest, f"targets/{sha256}": content})
        client = TrustClient(bench.folder.with_name(f"file-{number}"), bench.world.root, MirrorSource(mirror))
        try:
            view = client.refresh(bench.now)
        except HansaError as error:
            answers[error.reason.value] += 1
        else:
            answers["the analysis is not there"] += 1
            assert view.directory == bench.new.directory
            assert not view.analyses
    report(f"{kind}, each value changed once", answers)
    assert sum(answers.values()) >= 15


@pytest.mark.parametrize("role", ROLES)
def test_evil_each_role_rolled_back_by_itself_is_refused(bench: Bench, role: str) -> None:
    bench.move_on()
    files, forger = files_of(bench.world), Forger(bench.world)
    if role == "root":
        pytest.skip("a root is asked for by its next number only: an old one cannot be offered")
    if role == "targets":
        forger.put_targets(files, bench.past["metadata/1.targets.json"], 1)
    elif role == "snapshot":
        forger.put_timestamp(files, bench.past["metadata/1.snapshot.json"], 1)
    else:
        files["metadata/timestamp.json"] = bench.past["metadata/timestamp.json"]

    assert bench.answer(files) == Reason.TRUST_ROLLBACK


def test_evil_the_whole_old_state_is_refused(bench: Bench) -> None:
    bench.move_on()
    assert bench.answer(bench.past) == Reason.TRUST_ROLLBACK


@pytest.mark.parametrize("mixed", [1, 2, 3, 4, 5, 6])
def test_evil_a_mix_of_old_and_new_files_is_refused(bench: Bench, mixed: int) -> None:
    """Each choice of old and new among the contents of targets, snapshot and timestamp but all new (0) and all old."""
    files = files_of(bench.world)
    for bit, role in enumerate(("targets", "snapshot", "timestamp")):
        if mixed >> bit & 1:
            old = "metadata/timestamp.json" if role == "timestamp" else f"metadata/1.{role}.json"
            new = old.replace("/1.", f"/{bench.world.files.newest(role)}.") if role != "timestamp" else old
            files[new] = bench.past[old]

    # With the old timestamp the client looks at nothing else.
    refused = {Reason.TRUST_ROLLBACK.value, Reason.TRUST_INVALID.value}
    assert bench.answer(files) in ({"known"} if mixed & 4 else refused)


def test_evil_a_directory_of_an_older_version_under_newer_targets_is_not_what_was_signed(bench: Bench) -> None:
    files = files_of(bench.world)
    new, old = (directory_of(state) for state in (files, bench.past))
    files[new] = bench.past[old]

    client = TrustClient(bench.folder.with_name("no-memory"), bench.world.root, MirrorSource(Mirror(files)))
    with pytest.raises(HansaError) as refused:
        client.refresh(bench.now)
    assert refused.value.reason is Reason.TRUST_INVALID


def test_evil_a_repository_frozen_beyond_its_timestamp_is_refused(bench: Bench) -> None:
    files = files_of(bench.world)

    assert bench.answer(files, bench.now + timedelta(hours=23)) == "new"
    assert bench.answer(files, bench.now + timedelta(hours=25)) == Reason.TRUST_EXPIRED


def test_evil_a_freeze_with_both_on_line_keys_ends_with_the_targets_own_expiry(bench: Bench) -> None:
    """What remains when snapshot and timestamp are signed anew for ever: documented as the freeze window."""
    files, forger = files_of(bench.world), Forger(bench.world)
    soon, late = bench.now + timedelta(days=30), bench.now + timedelta(days=181)

    forger.keep_alive(files, soon)
    assert bench.answer(files, soon) == "new"
    forger.keep_alive(files, late)
    assert bench.answer(files, late) == Reason.TRUST_EXPIRED


def test_evil_a_coordinator_that_adds_itself_to_a_directory_of_its_own_is_refused(bench: Bench) -> None:
    """It signs with all it has: its on-line keys, under their own names and under those of the targets' keys."""
    world, forger = bench.world, Forger(bench.world)
    ada = world.directory.person("ada")
    assert ada is not None
    mallory = ada.model_copy(
        update={
            "name": "mallory",
            "signing_key": ada.recipient_key,
            "recipient_key": None,
            "roles": tuple(role for role in Role if role is not Role.AUDITOR),
            "nodes": ("FI",),
        }
    )
    bigger = world.directory.model_copy(
        update={"version": world.directory.version + 1, "people": (*world.directory.people, mallory)}
    )
    data = directory_bytes(bigger)
    for disguise in ("", "targets1"):
        files = files_of(world)
        body = json.loads(files[f"metadata/{world.files.newest('targets')}.targets.json"])["signed"]
        place = body["targets"]["directory.json"]
        place["length"], place["hashes"]["sha256"] = len(data), sha256(data)
        files[f"targets/{sha256(data)}"] = data
        body["version"] += 1
        metadata = json.loads(forger.signed(body, "snapshot", "timestamp"))
        if disguise:
            for signature, name in zip(metadata["signatures"], ("targets1", "targets2"), strict=True):
                signature["keyid"] = keyid(world.keys[name])
        forger.put_targets(files, json.dumps(metadata).encode(), body["version"])

        assert bench.answer(files) == Reason.TRUST_THRESHOLD


def test_evil_a_vote_that_the_coordinator_forges_is_refused(bench: Bench) -> None:
    """For an analysis of its own, with votes in the reviewers' names: targets that nobody signed off-line."""
    world, forger = bench.world, Forger(bench.world)
    true = world.bundles[0]
    mine = world.bundle({**true.files, "Snakefile": b"rule all:\n    shell: 'cat /data/*'\n"})
    own = dict(world.keys)
    world.keys.update({name: Ed25519PrivateKey.generate() for name in ("rev1", "rev2")})
    contents = world.vote(mine, "rev1", "rev2").targets()
    world.keys.update(own)
    files = files_of(world)
    body = json.loads(files[f"metadata/{world.files.newest('targets')}.targets.json"])["signed"]
    for path, data in contents.items():
        files[f"targets/{sha256(data)}"] = data
        body["targets"][path] = {"length": len(data), "hashes": {"sha256": sha256(data)}}
    body["version"] += 1
    forger.put_targets(files, forger.signed(body, "snapshot", "timestamp"), body["version"])

    assert bench.answer(files) == Reason.TRUST_THRESHOLD


def test_evil_one_stolen_signature_twice_is_one_signature(bench: Bench) -> None:
    """A threshold is of people: the envelope of one signer, repeated, does not reach two."""
    world, files = bench.world, files_of(bench.world)
    name = f"metadata/{world.files.newest('targets')}.targets.json"
    metadata = json.loads(files[name])
    metadata["signatures"] = [metadata["signatures"][0], metadata["signatures"][0]]
    fresh = TrustClient(bench.folder.with_name("twice"), world.root, MirrorSource(Mirror(files)))
    Forger(world).put_targets(files, json.dumps(metadata).encode(), metadata["signed"]["version"])

    with pytest.raises(HansaError) as refused:
        fresh.refresh(bench.now)
    assert refused.value.reason in {Reason.TRUST_THRESHOLD, Reason.TRUST_INVALID}


def directory_of(files: dict[str, bytes]) -> str:
    """Return the name of the directory's file in a mirror."""
    newest = max(int(n.split("/")[1].split(".")[0]) for n in files if n.endswith(".targets.json"))
    body = json.loads(files[f"metadata/{newest}.targets.json"])["signed"]
    return f"targets/{body['targets']['directory.json']['hashes']['sha256']}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
