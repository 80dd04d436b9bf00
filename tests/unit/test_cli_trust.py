"""The key ceremony by the public commands alone: no profile, no coordinator, one key folder per role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hansa.cli.main import cli
from tests.support.key_ceremony import PEOPLE, Ceremony

pytestmark = pytest.mark.slow


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    return Ceremony(tmp_path)


def whole(ceremony: Ceremony) -> None:
    ceremony.init()
    ceremony.add_people()
    ceremony.add_node("FI")
    ceremony.hansa("analysis", "publish", ceremony.bundle("rev1", "rev2"), "--repo", ceremony.repo)
    project = ["--researcher", "ada", "--dataset", "FI/FI-lct", "--analysis", "trivial@1.0"]
    ceremony.hansa("trust", "add-project", ceremony.repo, "lactose", *project)
    ceremony.hansa("trust", "add-witness", ceremony.repo, "FI")
    ceremony.sign("root1", "targets1", "root2", "targets2")


def test_a_federation_is_founded_by_commands_and_verified_from_its_first_root(ceremony: Ceremony) -> None:
    whole(ceremony)
    view = ceremony.view()
    assert {person.name for person in view.directory.people} == set(PEOPLE)
    assert [node.node for node in view.directory.nodes] == ["FI"]
    assert view.directory.witnesses == ("FI",)
    assert view.directory.version == 1
    assert view.analyses["trivial@1.0"].count.approved
    status = ceremony.hansa("trust", "status", ceremony.repo)
    assert status["ready"]
    assert status["changes"] == []


def test_the_status_says_who_has_signed_and_who_may_still(ceremony: Ceremony) -> None:
    ceremony.init()
    ceremony.add_people()
    root, targets = ceremony.sign("root3", "targets1")["roles"]
    assert (root["signed_by"], root["not_signed_by"], root["needed"]) == (["root3"], ["root1", "root2"], 1)
    assert (targets["signed_by"], targets["in_force"]) == (["targets1"], False)


def test_a_signer_is_shown_the_keys_that_people_were_told_when_they_made_them(ceremony: Ceremony) -> None:
    ceremony.init()
    fingerprint = ceremony.hansa("key", "create", ceremony.keys / "ada")["key_fingerprint"]
    ceremony.add_people()
    changes = ceremony.hansa("trust", "status", ceremony.repo)["changes"]
    assert f"added person ada: uni, researcher, key {fingerprint}" in changes


def test_a_change_after_a_signature_is_another_version_without_it(ceremony: Ceremony) -> None:
    ceremony.init()
    ceremony.add_people()
    ceremony.sign("root1", "root2", "targets1")
    ceremony.hansa("trust", "remove", ceremony.repo, "person", "rev2")
    (_, targets) = ceremony.hansa("trust", "status", ceremony.repo)["roles"]
    assert (targets["signed_by"], targets["version"], targets["needed"]) == ([], 1, 2)


def test_the_directory_version_grows_by_one_however_often_a_draft_is_edited(ceremony: Ceremony) -> None:
    whole(ceremony)
    for name in ("ada", "rev1"):
        edited = ceremony.hansa("trust", "remove", ceremony.repo, "person", name)
        assert edited["directory_version"] == 2
    ceremony.sign("targets1", "targets3")
    view = ceremony.view()
    assert (view.directory.version, view.targets_version) == (2, 2)
    assert not view.analyses["trivial@1.0"].count.approved, "the reviewer has left, and their vote with them"


def test_one_key_twice_does_not_make_two(ceremony: Ceremony) -> None:
    ceremony.init()
    again = ceremony.sign("root1", "root1", "targets1", "targets1")
    assert [role["needed"] for role in again["roles"]] == [1, 1]


def test_a_key_of_no_role_signs_nothing(ceremony: Ceremony) -> None:
    ceremony.init()
    assert ceremony.refusal("trust", "sign", ceremony.repo, "--key", ceremony.key("eve")) == "KEY_INVALID"
    assert ceremony.refusal("trust", "sign", ceremony.repo, "--key", ceremony.key("snapshot")) == "KEY_INVALID"


def test_a_rotated_root_needs_the_old_keys_and_the_new(ceremony: Ceremony) -> None:
    whole(ceremony)
    change = ["--remove-root-key", "root1", "--remove-root-key", "root2"]
    change += ["--add-root-key", ceremony.public("new1"), "--add-root-key", ceremony.public("new2")]
    ceremony.hansa("trust", "rotate", ceremony.repo, *change)
    assert not ceremony.sign("new1", "new2")["ready"], "enough of the new root, none of the old"
    assert not ceremony.sign("root1")["ready"]
    assert ceremony.sign("root2")["ready"]
    assert ceremony.view().root_version == 2


def test_signers_of_a_root_are_shown_whose_keys_it_has_and_how_many_it_takes(ceremony: Ceremony) -> None:
    """A draft goes from hand to hand: a key that was slipped in, or a lower threshold, is in words before they sign."""
    whole(ceremony)
    made = ceremony.hansa("key", "create", ceremony.keys / "mallory")["key_fingerprint"]
    change = ["--add-targets-key", ceremony.keys / "mallory.pub", "--targets-threshold", 1]
    ceremony.hansa("trust", "rotate", ceremony.repo, *change)
    (told,) = (line for line in ceremony.hansa("trust", "status", ceremony.repo)["changes"] if line.startswith("root"))
    assert told.startswith("root 2: targets takes 1 of ")
    assert f"{made} (mallory)" in told


def test_targets_whose_signers_left_are_signed_anew(ceremony: Ceremony) -> None:
    whole(ceremony)
    ceremony.hansa("trust", "rotate", ceremony.repo, "--remove-targets-key", "targets1")
    (_, targets) = ceremony.sign("root1", "root2")["roles"]
    assert (targets["version"], targets["in_force"]) == (2, False)
    ceremony.sign("targets2", "targets3")
    assert ceremony.view().targets_version == 2


def test_targets_are_renewed_before_they_expire(ceremony: Ceremony) -> None:
    whole(ceremony)
    ceremony.hansa("trust", "renew", ceremony.repo)
    assert ceremony.refusal("trust", "publish", ceremony.repo) == "TRUST_THRESHOLD"
    assert ceremony.sign("targets2", "targets3")["ready"]
    view = ceremony.view()
    assert (view.targets_version, view.directory.version) == (2, 1)


def test_a_signer_by_uri_is_asked_as_securesystemslib_does(ceremony: Ceremony) -> None:
    ceremony.init()
    uri = f"file2:{ceremony.key('root2')}"
    signed = ceremony.hansa("trust", "sign", ceremony.repo, "--uri", uri, "--as", "root2")
    assert signed["roles"][0]["signed_by"] == ["root2"]
    assert ceremony.refusal("trust", "sign", ceremony.repo, "--uri", uri, "--as", "root1") == "KEY_INVALID"
    assert ceremony.refusal("trust", "sign", ceremony.repo, "--uri", "nothing:1", "--as", "root1") == "KEY_INVALID"


def test_an_online_key_signs_nothing_offline(ceremony: Ceremony, tmp_path: Path) -> None:
    one = ceremony.public("one")
    arguments: Sequence[object] = [
        *("--federation", "demo", "--root-key", one, "--root-threshold", 1, "--targets-key", one),
        *("--targets-threshold", 1, "--snapshot-key", one, "--timestamp-key", ceremony.public("two")),
        *("--log-key", ceremony.public("log")),
    ]
    assert ceremony.refusal("trust", "init", tmp_path / "other", *arguments) == "TRUST_INVALID"


def test_a_threshold_of_more_keys_than_there_are_is_refused(ceremony: Ceremony) -> None:
    ceremony.init()
    assert ceremony.refusal("trust", "rotate", ceremony.repo, "--root-threshold", 4) == "TRUST_INVALID"
    assert ceremony.refusal("trust", "rotate", ceremony.repo, "--root-threshold", 0) == "TRUST_INVALID"


def test_a_card_that_was_changed_on_its_way_is_refused(ceremony: Ceremony) -> None:
    ceremony.init()
    ceremony.add_node("FI")
    card = ceremony.folder / "FI.card"
    card.write_text(card.read_text().replace('"FI"', '"ES"'))
    command = ("trust", "add-node", ceremony.repo, "--card", card, "--organisation", "x")
    assert ceremony.refusal(*command) == "DIRECTORY_INVALID"


def test_a_name_is_not_taken_twice_unless_it_is_said(ceremony: Ceremony) -> None:
    ceremony.init()
    ceremony.add_people()
    other = ["--organisation", "uni", "--key", ceremony.public("ada2"), "--role", "researcher"]
    assert ceremony.refusal("trust", "add-person", ceremony.repo, "ada", *other) == "DIRECTORY_INVALID"
    ceremony.hansa("trust", "add-person", ceremony.repo, "ada", *other, "--replace")


@pytest.mark.parametrize(
    "change",
    [
        lambda repo: (repo / "draft/tree/blobs").joinpath("0" * 64).write_bytes(b"x"),
        lambda repo: next((repo / "draft/tree/blobs").iterdir()).write_bytes(b"x"),
        lambda repo: (repo / "draft/tree/stray.json").write_bytes(b"{}"),
        lambda repo: next((repo / "draft/tree").rglob("author.dsse.json")).write_bytes(b"{}"),
        lambda repo: (repo / "draft/tree/directory.json").write_bytes(b"{}"),
    ],
)
def test_nobody_signs_a_draft_that_no_node_could_use(ceremony: Ceremony, change: Any) -> None:
    whole(ceremony)
    change(ceremony.repo)
    assert ceremony.outcome("trust", "sign", ceremony.repo, "--key", ceremony.key("targets1"))[0] == 2


def test_a_review_is_of_the_files_that_were_there(ceremony: Ceremony) -> None:
    ceremony.init()
    ceremony.add_people()
    bundle = ceremony.bundle("rev1", "rev2")
    (bundle / "files" / "Snakefile").write_text("rule all:\n")
    staged = ceremony.hansa("analysis", "publish", bundle, "--repo", ceremony.repo)
    assert (staged["state"], staged["author"], staged["approved by"]) == ("not approved", "", "")


def test_a_rejection_outweighs_approvals(ceremony: Ceremony) -> None:
    ceremony.init()
    ceremony.add_people()
    bundle = ceremony.bundle("rev1", "rev2")
    reject = ["--person", "rev2", "--key", ceremony.key("rev2"), "--reject", "--comment", "leaks"]
    ceremony.hansa("analysis", "review", bundle, *reject)
    assert ceremony.hansa("analysis", "publish", bundle, "--repo", ceremony.repo)["state"] == "rejected"


@pytest.mark.parametrize(
    "arguments",
    [
        ("trust", "status", "/nowhere/repo"),
        ("trust", "sign", "/nowhere/repo", "--key", "/nowhere/key"),
        ("trust", "publish", "/nowhere/repo"),
        ("trust", "add-witness", "/nowhere/repo", "FI"),
        ("analysis", "build", "/nowhere/analysis", "--person", "a", "--key", "/nowhere/key", "--to", "/nowhere/x"),
        ("analysis", "review", "/nowhere/bundle", "--person", "a", "--key", "/nowhere/key", "--approve"),
        ("analysis", "publish", "/nowhere/bundle", "--repo", "/nowhere/repo"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(arguments: Sequence[str]) -> None:
    result = CliRunner().invoke(cli, list(arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
