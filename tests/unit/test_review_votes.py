"""Which votes count on an analysis: by whom, on what, under whose key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hansa.contract.directory import Role
from hansa.contract.envelope import VOTE_TYPE, Signed, sign
from hansa.contract.review import Count, Vote, count_votes
from tests.support.trust_world import TrustWorld, build_trust_world


@pytest.fixture(scope="module")
def world() -> TrustWorld:
    return build_trust_world()


def vote(world: TrustWorld, reviewer: str, *, verdict: str = "approve", key: str = "", **changes: object) -> Signed:
    made = Vote.model_validate(
        {"analysis": world.analysis, "reviewer": reviewer, "verdict": verdict, "at": world.now, **changes}
    )
    return sign(VOTE_TYPE, made.to_bytes(), key_id=reviewer, key=world.keys[key or reviewer])


def count(world: TrustWorld, votes: Sequence[Signed], authorship: Signed | None = None) -> Count:
    signed = authorship or world.bundles[0].authorship
    return count_votes(world.directory, world.analysis, authorship=signed, votes=votes)


def test_two_reviewers_of_two_organisations_suffice(world: TrustWorld) -> None:
    found = count(world, [vote(world, "rev1"), vote(world, "rev2")])
    assert (found.approved, found.approved_by, found.ignored) == (True, ("rev1", "rev2"), {})


@pytest.mark.parametrize("reviewers", [["rev1"], ["rev1", "rev1"], ["rev1", "rev3"]])
def test_one_person_twice_or_one_organisation_does_not_suffice(world: TrustWorld, reviewers: list[str]) -> None:
    assert not count(world, [vote(world, name) for name in reviewers]).approved


def test_a_vote_counts_only_under_its_reviewers_own_key(world: TrustWorld) -> None:
    forged = vote(world, "rev2", key="rev1")
    found = count(world, [vote(world, "rev1"), forged])
    assert (found.approved, found.approved_by, set(found.ignored)) == (False, ("rev1",), {"rev2"})


def test_a_vote_on_another_analysis_does_not_count(world: TrustWorld) -> None:
    other = world.analysis.model_copy(update={"version": "9.9"})
    found = count(world, [vote(world, "rev1"), vote(world, "rev2", analysis=other)])
    assert (found.approved, set(found.ignored)) == (False, {"rev2"})


def test_a_vote_in_another_name_than_its_signers_does_not_count(world: TrustWorld) -> None:
    made = vote(world, "rev2")
    stolen = sign(VOTE_TYPE, made.payload, key_id="rev3", key=world.keys["rev3"])
    assert set(count(world, [vote(world, "rev1"), stolen]).ignored) == {"rev3"}


def test_an_author_who_is_a_reviewer_too_does_not_review_their_own(world: TrustWorld) -> None:
    people = tuple(
        replace_roles if person.name == "author" else person
        for person in world.directory.people
        for replace_roles in [person.model_copy(update={"roles": (Role.REVIEWER,)})]
    )
    directory = world.directory.model_copy(update={"people": people})
    votes = [vote(world, "rev2"), vote(world, "author")]
    found = count_votes(directory, world.analysis, authorship=world.bundles[0].authorship, votes=votes)
    assert (found.approved, set(found.ignored)) == (False, {"author"})


@pytest.mark.parametrize("turned", [False, True])
def test_one_rejection_outweighs_every_approval(world: TrustWorld, *, turned: bool) -> None:
    votes = [vote(world, "rev1"), vote(world, "rev2"), vote(world, "rev3", verdict="reject")]
    found = count(world, votes[::-1] if turned else votes)
    assert (found.approved, found.rejected_by) == (False, ("rev3",))
    both = [vote(world, "rev1"), vote(world, "rev2"), vote(world, "rev1", verdict="reject")]
    assert not count(world, both[::-1] if turned else both).approved


def test_without_an_author_nothing_is_approved(world: TrustWorld) -> None:
    votes = [vote(world, "rev1"), vote(world, "rev2")]
    assert not count(world, votes, replace(world.bundles[0].authorship, signature=bytes(64))).approved
    assert not count(world, votes, replace(world.bundles[0].authorship, key_id="bob")).approved
