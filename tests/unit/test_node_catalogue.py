"""What a node may run: what the trust in force approves, whole on its disk under its digest."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.trust.view import TrustView
from node_agent.catalogue import Catalogue, is_sound, place_of
from tests.support.agent import BUNDLE, DIGEST, make_world
from tests.support.trust_world import TrustWorld

KEY = "allele-frequency@1.0"


@pytest.fixture
def world(tmp_path: Path) -> TrustWorld:
    return make_world(tmp_path / "analysis")


class Node:
    """A catalogue that follows a view which the test sets."""

    def __init__(self, folder: Path, world: TrustWorld) -> None:
        self.world = world
        self.view: TrustView | None = world.view
        self.read: list[str] = []
        self.catalogue = Catalogue(folder, lambda: self.view)

    def fetch(self, path: str, sha256: str) -> bytes:
        self.read.append(path)
        return self.world.files.target_file(sha256)

    def install(self) -> None:
        self.view = self.world.view
        self.catalogue.install(self.view, self.fetch)


@pytest.fixture
def node(tmp_path: Path, world: TrustWorld) -> Node:
    return Node(tmp_path / "analyses", world)


def test_an_approved_analysis_is_installed_under_its_digest_and_closed_to_writing(node: Node) -> None:
    node.install()
    analysis = node.catalogue[KEY]
    assert (analysis.digest, analysis.key) == (DIGEST, KEY)
    assert analysis.folder == place_of(node.catalogue.folder, DIGEST)
    assert {path.name: path.read_bytes() for path in analysis.folder.iterdir()} == BUNDLE
    assert stat.S_IMODE(analysis.folder.stat().st_mode) == 0o555
    assert {stat.S_IMODE(path.stat().st_mode) for path in analysis.folder.iterdir()} == {0o444}


def test_nothing_is_fetched_twice_also_not_after_a_restart(node: Node) -> None:
    node.install()
    again = Node(node.catalogue.folder, node.world)
    again.install()
    again.install()
    assert sorted(node.read) == sorted(BUNDLE)
    assert again.read == []
    assert list(again.catalogue) == [KEY]


def test_without_trust_nothing_may_run(node: Node) -> None:
    node.install()
    node.view = None
    assert len(node.catalogue) == 0
    assert KEY not in node.catalogue


def test_an_analysis_with_too_few_votes_is_not_even_fetched(node: Node) -> None:
    bundle = node.world.bundles[0]
    node.world.bundles = [replace(bundle, votes={"rev1": bundle.votes["rev1"]})]
    node.world.publish()
    node.install()
    assert (list(node.catalogue), node.read) == ([], [])


def test_a_vote_that_is_withdrawn_takes_the_analysis_away_at_once_though_it_is_on_the_disk(node: Node) -> None:
    node.install()
    bundle = node.world.bundles[0]
    node.world.bundles = [node.world.vote(bundle, "rev3", verdict="reject")]
    node.world.publish()
    node.view = node.world.view
    assert place_of(node.catalogue.folder, DIGEST).is_dir()
    assert list(node.catalogue) == []


def test_a_file_that_is_not_what_was_voted_on_is_not_installed(node: Node) -> None:
    view = node.world.view
    node.catalogue.install(view, lambda path, sha256: node.fetch(path, sha256) + b"#")
    assert list(node.catalogue) == []
    assert not place_of(node.catalogue.folder, DIGEST).exists()
    node.install()
    assert list(node.catalogue) == [KEY]
    assert [path.name for path in node.catalogue.folder.iterdir()] == [DIGEST.removeprefix("sha256:")]


def test_a_fetch_that_fails_leaves_the_others_and_is_tried_again(node: Node) -> None:
    def away(path: str, sha256: str) -> bytes:
        raise HansaError(Reason.COORDINATOR_UNREACHABLE)

    node.catalogue.install(node.world.view, away)
    assert list(node.catalogue) == []
    node.install()
    assert list(node.catalogue) == [KEY]


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_a_bundle_that_was_changed_on_the_disk_is_not_sound_and_is_had_anew_after_a_restart(
    node: Node, change: str
) -> None:
    node.install()
    analysis = node.catalogue[KEY]
    assert is_sound(analysis)
    analysis.folder.chmod(0o755)
    snakefile = analysis.folder / "Snakefile"
    if change == "changed":
        snakefile.chmod(0o644)
        snakefile.write_bytes(snakefile.read_bytes() + b"#")
    elif change == "added":
        (analysis.folder / "more.py").write_bytes(b"")
    else:
        snakefile.unlink()
    assert not is_sound(analysis)
    again = Node(node.catalogue.folder, node.world)
    again.install()
    assert sorted(again.read) == sorted(BUNDLE)
    assert is_sound(again.catalogue["allele-frequency@1.0"])
