from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.digests import digest
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import ANALYSIS_NAME, ANALYSIS_VERSION, PERSON_NAME
from hansa.contract.manifest import Limits
from node_agent.policy.policy import (
    CARRIERS_FLOOR,
    COHORT_FLOOR,
    LimitsPolicy,
    Policy,
    data_holder,
    parse_policy,
    policy_digest,
    policy_of,
    to_toml,
    with_entry,
    with_value,
    without_entry,
)

PERSONS = st.from_regex(PERSON_NAME, fullmatch=True)
ANALYSES = st.builds(
    "{}@{}".format, st.from_regex(ANALYSIS_NAME, fullmatch=True), st.from_regex(ANALYSIS_VERSION, fullmatch=True)
)
HOLDERS = st.builds(data_holder, PERSONS, st.binary(max_size=8).map(digest))
POLICIES = st.fixed_dictionaries(
    {
        "admission": st.fixed_dictionaries(
            {
                "submitters": st.lists(PERSONS | st.just("*"), max_size=3),
                "analyses": st.lists(ANALYSES, max_size=3),
                "max_region_bases": st.integers(1, 10**9),
                "require_passport": st.booleans(),
            }
        ),
        "approval": st.fixed_dictionaries({"data_holders": st.lists(HOLDERS, max_size=3)}),
        "release": st.fixed_dictionaries({"mode": st.sampled_from(["auto", "manual"])}),
        "disclosure": st.fixed_dictionaries({"min_cohort": st.integers(20, 1000), "min_carriers": st.integers(10, 99)}),
        "limits": st.fixed_dictionaries({"cpus": st.floats(0.05, 64), "pids": st.integers(16, 4096)}),
    }
).map(policy_of)


@given(POLICIES)
def test_a_policy_survives_its_file(policy: Policy) -> None:
    text = to_toml(policy)
    again = parse_policy(text)
    assert again == policy
    assert to_toml(again) == text
    assert policy_digest(again) == policy_digest(policy)


@given(POLICIES, POLICIES)
def test_two_policies_have_one_digest_only_if_they_are_one(first: Policy, second: Policy) -> None:
    assert (policy_digest(first) == policy_digest(second)) == (first == second)


@given(PERSONS, ANALYSES)
def test_what_a_policy_does_not_say_is_denied(person: str, analysis: str) -> None:
    name, version = analysis.split("@")
    silent = parse_policy("")
    assert silent == Policy()
    assert not silent.admits_submitter(person)
    assert not silent.admits_analysis(name, version)
    assert silent.release.mode == "manual"
    assert (silent.disclosure.min_cohort, silent.disclosure.min_carriers) == (COHORT_FLOOR, CARRIERS_FLOOR)


@given(st.integers(-10, COHORT_FLOOR - 1), st.integers(-10, CARRIERS_FLOOR - 1))
def test_no_policy_lowers_the_disclosure_floors(cohort: int, carriers: int) -> None:
    for key, value in (("min_cohort", cohort), ("min_carriers", carriers)):
        with pytest.raises(HansaError) as refused:
            parse_policy(f"[disclosure]\n{key} = {value}\n")
        assert refused.value.reason is Reason.POLICY_INVALID
        assert refused.value.field == f"disclosure.{key}"


@given(POLICIES, st.sampled_from(list(Policy.model_fields)), st.from_regex(r"[a-z_]{1,20}x9", fullmatch=True))
def test_an_unknown_key_is_an_error_that_names_the_key(policy: Policy, section: str, key: str) -> None:
    raw = tomllib.loads(to_toml(policy))
    raw[section][key] = 1
    with pytest.raises(HansaError) as refused:
        policy_of(raw)
    assert refused.value.field == f"{section}.{key}"
    assert key in refused.value.public


@pytest.mark.parametrize(
    "text",
    [
        "[admission]\nsubmitters = 'ada'",
        "[admission]\nsubmitters = ['ADA']",
        "[admission]\nanalyses = ['allele-frequency']",
        "[admission]\nmax_variants = 1.0",
        "[admission]\nmax_variants = '10'",
        "[admission]\nmax_variants = true",
        "[release]\nmode = 'automatic'",
        "[limits]\ncpus = inf",
        "[limits]\ncpus = nan",
        "[retention]\nrun_days = 2026-01-01",
        "release = 'auto'",
        "[admission",
        "[admissions]",
    ],
)
def test_a_policy_that_is_not_exactly_one_is_refused(text: str) -> None:
    with pytest.raises(HansaError) as refused:
        parse_policy(text)
    assert refused.value.reason is Reason.POLICY_INVALID


@given(POLICIES, PERSONS)
def test_what_was_allowed_can_be_disallowed(policy: Policy, person: str) -> None:
    allowed = with_entry(policy, "submitters", person)
    assert allowed.admits_submitter(person)
    assert with_entry(allowed, "submitters", person) == allowed
    taken_back = without_entry(allowed, "submitters", person)
    assert person not in taken_back.admission.submitters


def test_taking_back_what_was_never_allowed_is_refused() -> None:
    with pytest.raises(HansaError) as refused:
        without_entry(Policy(), "analyses", "allele-frequency@1.0")
    assert refused.value.reason is Reason.POLICY_INVALID


@pytest.mark.parametrize(
    ("key", "text", "section", "name", "value"),
    [
        ("release", "auto", "release", "mode", "auto"),
        ("release.mode", "auto", "release", "mode", "auto"),
        ("disclosure.min_cohort", "30", "disclosure", "min_cohort", 30),
        ("limits.cpus", "1.5", "limits", "cpus", 1.5),
        ("limits.cpus", "3", "limits", "cpus", 3.0),
    ],
)
def test_one_value_can_be_set_by_its_key(key: str, text: str, section: str, name: str, value: object) -> None:
    changed = with_value(Policy(), key, text)
    assert getattr(getattr(changed, section), name) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("release", "sometimes"),
        ("admission", "3"),
        ("nothing.there", "3"),
        ("", "3"),
        ("disclosure.min_cohort", "5"),
        ("disclosure.min_cohort", "many"),
        ("admission.submitters", "*"),
    ],
)
def test_a_value_that_does_not_fit_its_key_is_refused(key: str, text: str) -> None:
    with pytest.raises(HansaError) as refused:
        with_value(Policy(), key, text)
    assert refused.value.reason is Reason.POLICY_INVALID


@given(st.builds(Limits, wall_seconds=st.integers(1, 10**6), cpus=st.floats(0.1, 64)), st.integers(1, 10**6))
def test_a_policy_never_gives_more_than_the_manifest_asks(asked: Limits, wall_seconds: int) -> None:
    policy = LimitsPolicy(wall_seconds=wall_seconds)
    given_ = policy.bound(asked)
    assert given_.wall_seconds == min(asked.wall_seconds, wall_seconds)
    assert given_.summary_bytes == asked.summary_bytes
    assert all(value <= getattr(asked, name) for name, value in given_.model_dump().items())


@given(PERSONS, st.binary(max_size=8), st.binary(max_size=8))
def test_a_data_holder_is_pinned_with_one_key_and_let_go_by_the_name_with_all(
    name: str, one: bytes, other: bytes
) -> None:
    policy = Policy()
    assert not policy.pins_data_holder(name, digest(one))
    policy = with_entry(policy, "data_holders", data_holder(name, digest(one)))
    assert policy.pins_data_holder(name, digest(one))
    assert policy.pins_data_holder(name, digest(other)) == (one == other)
    policy = with_entry(policy, "data_holders", data_holder(name, digest(other)))
    assert without_entry(policy, "data_holders", name).approval.data_holders == ()


@pytest.mark.parametrize(
    "entry", ["mika", "mika=", "mika=sha256:00", "*", f"*=sha256:{'0' * 64}", f"sha256:{'0' * 64}"]
)
def test_what_is_no_name_with_a_whole_digest_pins_nobody(entry: str) -> None:
    with pytest.raises(HansaError) as refused:
        with_entry(Policy(), "data_holders", entry)
    assert refused.value.reason is Reason.POLICY_INVALID


def test_a_switch_is_set_by_its_word() -> None:
    policy = with_value(Policy(), "admission.require_passport", "true")
    assert policy.admission.require_passport
    assert not with_value(policy, "admission.require_passport", "false").admission.require_passport
    with pytest.raises(HansaError):
        with_value(policy, "admission.require_passport", "yes")
