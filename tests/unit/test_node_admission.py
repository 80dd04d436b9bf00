"""Details of a node's decision on a job; the order of its questions is in test_admission_order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from hansa.contract.approval import ApprovalLimits
from hansa.contract.digests import digest
from hansa.contract.directory import Directory, Role
from hansa.contract.envelope import PASSPORT_ADDENDUM_TYPE, Signed, sign
from hansa.contract.errors import RunReason
from hansa.contract.job import AnalysisRef, JobSpec
from hansa.contract.manifest import Limits
from hansa.contract.passport import PassportAddendum
from node_agent.policy.admission import Admitted, Declined, LocalDataset, NodeView, Taken, still_stands
from node_agent.policy.approvals import HeldApproval
from node_agent.policy.policy import Policy
from tests.support.admission_cases import MANIFEST, Case, held_approval, person, project, votes
from tests.support.agent import (
    DIGEST,
    HOLDER,
    NODE,
    START,
    approve_job,
    approved_by,
    job,
    person_key,
    pinned,
    signed_as,
    standing,
)

OTHER = "sha256:" + "c" * 64
PASSPORT, FRESH = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def held(signed: Signed) -> HeldApproval:
    return HeldApproval("id", digest(signed.payload), signed)


def test_a_job_that_the_policy_allows_is_admitted_in_normal_form_and_within_the_stricter_limits() -> None:
    case = Case(job={"parameters": {"variants": "chr15:28365618:A:G"}})
    case.policy["limits"] = {"cpus": 0.5, "wall_seconds": 7200}
    outcome = case.answer()
    assert isinstance(outcome, Admitted)
    assert outcome.parameters == {"variants": "15:28365618:A:G"}
    assert outcome.limits == MANIFEST.limits.model_copy(update={"cpus": 0.5})
    assert isinstance(outcome.limits, Limits)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job": {"not_after": START + timedelta(days=400)}}, RunReason.JOB_INVALID),
        ({"job": {"submitter": "mallory"}}, RunReason.SUBMITTER_NOT_ADMITTED),
        ({"job": {"submitter": "rev1"}}, RunReason.SUBMITTER_NOT_ADMITTED),
        ({"job": {"project": "other"}}, RunReason.PROJECT_NOT_ADMITTED),
        ({"job": {"submitter": "author"}}, RunReason.PROJECT_NOT_ADMITTED),
        (
            {"job": {"analysis": AnalysisRef(name="allele-frequency", version="1.1", digest=DIGEST)}},
            RunReason.PROJECT_NOT_ADMITTED,
        ),
        (
            {"job": {"analysis": AnalysisRef(name="allele-frequency", version="1.0", digest=OTHER)}},
            RunReason.ANALYSIS_NOT_ADMITTED,
        ),
        ({"trust": {"analyses": {}}}, RunReason.ANALYSIS_NOT_ADMITTED),
        ({"trust": {"analyses": votes(approved_by=("rev1",))}}, RunReason.ANALYSIS_NOT_ADMITTED),
        ({"trust": {"analyses": votes(organisations=frozenset({"org-a"}))}}, RunReason.ANALYSIS_NOT_ADMITTED),
        ({"view": {"dataset": LocalDataset("FI-other", OTHER)}}, RunReason.DATASET_NOT_OFFERED),
        ({"view": {"dataset": LocalDataset("FI-lct", OTHER)}}, RunReason.SNAPSHOT_CHANGED),
        ({"job": {"parameters": {"variants": "nonsense"}}}, RunReason.PARAMETER_INVALID),
        ({"job": {"parameters": {"variants": "rs1", "shell": "rm"}}}, RunReason.PARAMETER_INVALID),
        ({"job": {"parameters": {"region": "2:1-1000001"}}}, RunReason.REGION_TOO_LARGE),
        ({"view": {"keys": None}}, RunReason.NODE_NOT_IN_DIRECTORY),
    ],
)
def test_each_ground_for_declining_has_its_reason(changes: dict[str, Any], reason: RunReason) -> None:
    assert Case(**changes).answer() == Declined(reason)


@pytest.mark.parametrize(
    "change",
    [
        project(researchers=("bob",)),
        project(datasets=("ES/ES-lct",)),
        project(datasets=("FI/FI-other", "ES/FI-lct")),
        project(analyses=("allele-frequency@1.1",)),
        project(project="renamed"),
    ],
)
def test_a_project_admits_its_own_people_datasets_and_analyses_only(
    change: Callable[[Directory], Directory],
) -> None:
    assert Case(directory=[change]).answer() == Declined(RunReason.PROJECT_NOT_ADMITTED)


def test_a_question_of_exactly_the_largest_size_is_admitted() -> None:
    small = {"max_region_bases": 1000, "max_variants": 2}
    for parameters in ({"region": "2:1-1000"}, {"variants": "rs1,rs2,rs1"}):
        case = Case(job={"parameters": parameters})
        case.policy["admission"] |= small
        assert isinstance(case.answer(), Admitted)


def test_a_node_without_a_policy_admits_nobody() -> None:
    assert Case(view={"policy": Policy()}).answer() == Declined(RunReason.SUBMITTER_NOT_ADMITTED)


def test_anybody_may_be_admitted_by_a_star_but_only_to_listed_analyses() -> None:
    case = Case(job={"submitter": "bob"})
    case.policy["admission"] = {"submitters": ["*"]}
    assert case.answer() == Declined(RunReason.ANALYSIS_NOT_ADMITTED)


def test_a_stranger_learns_nothing_about_the_datasets() -> None:
    answers = set()
    for dataset in (None, LocalDataset("FI-lct", OTHER), LocalDataset("x", OTHER)):
        case = Case(job={"submitter": "bob"}, view={"dataset": dataset})
        case.policy["admission"] |= {"submitters": ["ada"]}
        answers.add(case.answer())
    assert answers == {Declined(RunReason.SUBMITTER_NOT_ADMITTED)}


def test_a_job_is_sealed_to_its_own_submitters_key_of_the_directory_alone() -> None:
    directory = Case().node_view().trust.directory  # type: ignore[union-attr]  # there is one
    ada, bob = directory.person("ada"), directory.person("bob")
    assert ada is not None
    assert bob is not None
    assert isinstance(Case(job={"recipient_key": ada.recipient_key}).answer(), Admitted)
    sealed = Case(job={"recipient_key": ada.recipient_key}, directory=[project(sealed=True)])
    assert isinstance(sealed.answer(), Admitted)
    assert Case(job={"recipient_key": bob.recipient_key}).answer() == Declined(RunReason.RECIPIENT_MISMATCH)


# --- passports ----------------------------------------------------------------


def addendum(spec: JobSpec, *, signer: str = "ada", **changes: Any) -> Signed:
    values = {
        "job_id": spec.job_id,
        "job_digest": digest(spec.to_bytes()),
        "node": NODE,
        "passport_digest": FRESH,
        "at": START,
        **changes,
    }
    payload = PassportAddendum.model_validate(values).to_bytes()
    return sign(PASSPORT_ADDENDUM_TYPE, payload, key_id=signer, key=person_key(signer))


def passport_of(spec: JobSpec, *addenda: Signed) -> str:
    case = Case(job=spec.model_dump(), offered={"addenda": addenda})
    outcome = case.answer()
    assert isinstance(outcome, Admitted)
    return outcome.passport


def test_the_passport_that_a_job_names_for_this_node_counts_and_that_of_another_does_not() -> None:
    assert passport_of(job(passports={NODE: PASSPORT})) == PASSPORT
    assert passport_of(job(passports={"ES": PASSPORT})) == ""


def test_a_fresh_passport_takes_the_older_ones_place_and_the_newest_wins() -> None:
    spec = job(passports={NODE: PASSPORT})
    later = addendum(spec, passport_digest=OTHER, at=START + timedelta(minutes=1))
    assert passport_of(spec, addendum(spec)) == FRESH
    assert passport_of(spec, later, addendum(spec)) == OTHER


def test_a_fresh_passport_counts_only_from_the_submitter_and_for_this_job_at_this_node() -> None:
    spec = job(passports={NODE: PASSPORT})
    others = (
        addendum(spec, signer="bob"),
        replace(addendum(spec), key_id="bob"),
        replace(addendum(spec), signature=bytes(64)),
        replace(addendum(spec), payload_type="text/plain"),
        addendum(spec, node="ES"),
        addendum(spec, job_digest=OTHER),
        addendum(job(), passport_digest=FRESH),
    )
    assert passport_of(spec, *others) == PASSPORT


def test_a_job_whose_passport_comes_later_is_admitted_where_one_is_required() -> None:
    spec = job()
    case = Case(job=spec.model_dump(), offered={"addenda": (addendum(spec),)})
    case.policy["admission"] |= {"require_passport": True}
    assert isinstance(case.answer(), Admitted)


# --- approvals ----------------------------------------------------------------


def approved(spec: JobSpec, signed: Signed, *, case: Case | None = None) -> bool:
    case = case or Case()
    case.job, case.view = spec.model_dump(), {**case.view, "approvals": (held(signed),)}
    outcome = case.answer()
    assert isinstance(outcome, Admitted)
    return outcome.approval is not None


def test_without_an_approval_a_data_holder_has_to_be_asked() -> None:
    outcome = Case(view={"approvals": ()}).answer()
    assert isinstance(outcome, Admitted)
    assert outcome.approval is None


def test_an_approval_of_exactly_this_job_counts_and_that_of_another_does_not() -> None:
    spec = job()
    assert approved(spec, approved_by(approve_job(spec)))
    assert not approved(spec, approved_by(approve_job(job())))
    assert not approved(spec, approved_by(approve_job(spec, job_digest=OTHER)))


@pytest.mark.parametrize(
    "changes",
    [
        {"project": "other"},
        {"analysis": AnalysisRef(name="allele-frequency", version="1.0", digest=OTHER)},
        {"datasets": ("FI-other",)},
        {"not_after": START},
        {"not_before": START + timedelta(seconds=1)},
        {"node": "ES"},
        {"federation": "other.example"},
        {"approver": "ada"},
        {"limits": ApprovalLimits(max_variants=1)},
    ],
)
def test_a_standing_approval_covers_only_what_it_says(changes: dict[str, Any]) -> None:
    spec = job(parameters={"variants": "rs1,rs2"})
    assert approved(spec, approved_by(standing()))
    assert not approved(spec, approved_by(standing(**changes), HOLDER))


@pytest.mark.parametrize("signer", ["ada", "operator-fi", "holder-es", "rev1"])
def test_only_the_nodes_own_data_holder_approves_also_where_another_is_pinned(signer: str) -> None:
    spec = job()
    case = Case()
    case.policy["approval"] = {"data_holders": [pinned(signer), pinned(HOLDER)]}
    assert not approved(spec, approved_by(approve_job(spec, approver=signer)), case=case)


def test_a_data_holder_whom_the_directory_names_does_not_count_without_the_nodes_own_word() -> None:
    spec = job()
    for pins in ([], [pinned("ada").replace("ada", HOLDER)]):
        case = Case()
        case.policy["approval"] = {"data_holders": pins}
        assert not approved(spec, approved_by(approve_job(spec)), case=case)


@pytest.mark.parametrize(
    "change",
    [
        person(HOLDER, roles=(Role.AUDITOR,)),
        person(HOLDER, nodes=("ES",)),
        person(HOLDER, name="somebody"),
        person(HOLDER, roles=(Role.DATA_HOLDER, Role.NODE_OPERATOR)),
    ],
)
def test_a_data_holder_who_is_none_any_more_or_operates_the_node_does_not_approve(
    change: Callable[[Directory], Directory],
) -> None:
    assert not approved(job(), approved_by(standing()), case=Case(directory=[change]))


def test_nobody_approves_their_own_job() -> None:
    both = person("ada", roles=(Role.RESEARCHER, Role.DATA_HOLDER), nodes=(NODE,))
    spec = job()
    case = Case(directory=[both])
    case.policy["approval"] = {"data_holders": [pinned("ada")]}
    assert not approved(spec, approved_by(approve_job(spec, approver="ada")), case=case)


# --- what was admitted -----------------------------------------------------------


def view_of(case: Case) -> NodeView:
    return case.node_view()


def stands(case: Case, *, starting: bool = False, taken: tuple[Taken, ...] | None = None) -> RunReason | None:
    spec = job()
    approvals = (Taken(held_approval(), START),) if taken is None else taken
    return still_stands(spec, signed_as(spec), view_of(case), taken=approvals, starting=starting)


def test_what_was_admitted_starts_and_goes_on_as_long_as_nothing_is_revoked() -> None:
    assert stands(Case(), starting=True) is None
    assert stands(Case()) is None


def test_expired_metadata_stop_what_would_start_and_not_what_runs() -> None:
    expired = Case(trust={"expires": START})
    assert stands(expired, starting=True) is RunReason.TRUST_EXPIRED
    assert stands(expired) is None


@pytest.mark.parametrize("starting", [True, False])
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(directory=[person("ada", roles=(Role.AUDITOR,))]), RunReason.SUBMITTER_NOT_ADMITTED),
        (Case(directory=[person("ada", name="gone")]), RunReason.SUBMITTER_NOT_ADMITTED),
        (Case(directory=[project(researchers=())]), RunReason.PROJECT_NOT_ADMITTED),
        (Case(trust={"analyses": votes(rejected_by=("rev3",))}), RunReason.ANALYSIS_NOT_ADMITTED),
        (Case(trust={"analyses": {}}), RunReason.ANALYSIS_NOT_ADMITTED),
        (Case(directory=[person(HOLDER, roles=(Role.AUDITOR,))]), RunReason.APPROVAL_REFUSED),
        (Case(view={"alarmed": True}), RunReason.LOG_FORKED),
        (Case(view={"keys": None}), RunReason.NODE_NOT_IN_DIRECTORY),
        (Case(blind=True), RunReason.TRUST_EXPIRED),
    ],
)
def test_what_is_revoked_stops_both(case: Case, reason: RunReason, starting: bool) -> None:
    assert stands(case, starting=starting) is reason


@pytest.mark.parametrize("starting", [True, False])
@pytest.mark.parametrize(
    ("narrower", "reason"),
    [
        ({"submitters": ["bob"]}, RunReason.SUBMITTER_NOT_ADMITTED),
        ({"analyses": []}, RunReason.ANALYSIS_NOT_ADMITTED),
    ],
)
def test_what_the_nodes_own_policy_admits_no_more_stops_both(
    narrower: dict[str, Any], reason: RunReason, starting: bool
) -> None:
    case = Case()
    case.policy["admission"] |= narrower
    assert stands(case, starting=starting) is reason


@pytest.mark.parametrize("starting", [True, False])
def test_a_run_whose_approval_is_revoked_or_missing_stops(starting: bool) -> None:
    assert stands(Case(), starting=starting, taken=(Taken(None, START),)) is RunReason.APPROVAL_REFUSED
    assert stands(Case(), starting=starting, taken=()) is RunReason.APPROVAL_REFUSED


def test_an_approval_whose_time_is_over_lets_nothing_start_and_what_runs_end() -> None:
    late = Case(view={"now": START + timedelta(days=301)}, trust={"expires": START + timedelta(days=999)})
    assert stands(late, starting=True) is RunReason.APPROVAL_REFUSED
    assert stands(late) is None


def test_a_key_that_was_replaced_in_the_directory_stops_the_job_it_had_signed() -> None:
    bobs = Case().node_view().trust.directory.person("rev1")  # type: ignore[union-attr]  # there is one
    assert bobs is not None
    assert stands(Case(directory=[person("ada", signing_key=bobs.signing_key)])) is RunReason.SIGNATURE_INVALID
