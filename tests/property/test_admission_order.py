"""The order in which a node judges a job: the first ground that it meets is the one that it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.errors import RunReason
from node_agent.policy.admission import Admitted, Declined
from tests.support.admission_cases import EXCLUSIVE, GROUNDS, Case

NAMES = [name for name, _, _ in GROUNDS]
# Questions of two variants are too large only where the policy says so.
SMALL = {"max_variants": 1}


def judged(names: list[str]) -> Admitted | Declined:
    case = Case()
    case.policy["admission"] |= SMALL
    for name, change, _ in GROUNDS:
        if name in names:
            change(case)
    return case.answer()


def test_without_any_ground_the_job_is_admitted_under_the_standing_approval() -> None:
    outcome = judged([])
    assert isinstance(outcome, Admitted)
    assert outcome.approval is not None


@pytest.mark.parametrize("name", NAMES)
def test_each_ground_alone_has_its_reason(name: str) -> None:
    reason = next(reason for one, _, reason in GROUNDS if one == name)
    assert judged([name]) == Declined(reason)


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_an_earlier_ground_hides_all_later_ones(names: set[str]) -> None:
    for pair in EXCLUSIVE:
        if pair <= names:
            names = names - {min(pair)}
    first = next(reason for name, _, reason in GROUNDS if name in names)
    assert judged(list(names)) == Declined(first)


@given(st.sets(st.sampled_from(NAMES)))
def test_what_is_not_signed_by_its_submitter_is_never_taken_for_authentic(names: set[str]) -> None:
    outcome = judged([*names, "forged"])
    assert isinstance(outcome, Declined)
    assert not outcome.authentic


@pytest.mark.parametrize("name", NAMES[NAMES.index("project over") :])
def test_what_its_submitter_has_signed_is_authentic_though_it_is_declined(name: str) -> None:
    outcome = judged([name])
    assert isinstance(outcome, Declined)
    assert outcome.authentic


def test_every_reason_for_declining_a_job_unasked_has_a_ground_here() -> None:
    elsewhere = {RunReason.SNAPSHOT_CHANGED, RunReason.REGION_TOO_LARGE, RunReason.APPROVAL_REFUSED}
    ordered = list(RunReason)
    declined = set(ordered[: ordered.index(RunReason.ANALYSIS_FAILED)]) | {RunReason.DEADLINE_PASSED}
    assert {reason for _, _, reason in GROUNDS} == declined - elsewhere
