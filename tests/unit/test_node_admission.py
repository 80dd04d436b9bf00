from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hansa.contract.errors import RunReason
from hansa.contract.job import JobSpec
from hansa.contract.manifest import Limits, Manifest
from node_agent.policy.admission import Admitted, Declined, LocalDataset, NodeView, admit
from node_agent.policy.policy import Policy, policy_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
SNAPSHOT = "sha256:" + "b" * 64
OTHER = "sha256:" + "c" * 64

MANIFEST = Manifest.model_validate_json(
    """{"name": "allele-frequency", "version": "1.0", "title": "t", "disclosure": "allele-counts",
        "parameters": {"variants": {"type": "variants"}, "region": {"type": "region"}},
        "one_of": [["variants", "region"]],
        "summary": {"axes": {"variant": {"labels": "variant"}},
                    "arrays": {"ac": {"dtype": "int64", "axes": ["variant"], "merge": "sum", "released": true}}},
        "limits": {"wall_seconds": 900, "cpus": 8.0}}"""
)


def job(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "job_id": "00000000-0000-7000-8000-000000000000",
        "nonce": "0" * 32,
        "submitter": "ada",
        "analysis": {"name": "allele-frequency", "version": "1.0", "digest": DIGEST},
        "parameters": {"variants": "chr15:28365618:A:G"},
        "datasets": [{"node": "FI", "dataset": "FI-aisnp", "snapshot": SNAPSHOT}],
        "quorum": 1,
        "not_before": NOW,
        "not_after": NOW + timedelta(hours=1),
    }
    return JobSpec.model_validate({**values, **changes})


POLICY = policy_of(
    {
        "admission": {
            "submitters": ["ada"],
            "analyses": ["allele-frequency@1.0"],
            "max_region_bases": 1000,
            "max_variants": 2,
            "max_queued_runs": 3,
        },
        "limits": {"cpus": 1.5, "wall_seconds": 7200},
    }
)
VIEW = NodeView(
    node="FI",
    policy=POLICY,
    manifest=MANIFEST,
    analysis_digest=DIGEST,
    dataset=LocalDataset("FI-aisnp", SNAPSHOT),
    now=NOW,
)


def test_a_job_that_the_policy_allows_is_admitted_in_normal_form_and_within_the_stricter_limits() -> None:
    outcome = admit(job(), VIEW)
    assert isinstance(outcome, Admitted)
    assert outcome.parameters == {"variants": "15:28365618:A:G"}
    assert outcome.limits == MANIFEST.limits.model_copy(update={"cpus": 1.5})
    assert isinstance(outcome.limits, Limits)


@pytest.mark.parametrize(
    ("job_changes", "view_changes", "reason"),
    [
        ({}, {"draining": True}, RunReason.NODE_DRAINING),
        ({}, {"queued": 3}, RunReason.NODE_BUSY),
        ({}, {"node": "ES"}, RunReason.JOB_INVALID),
        ({}, {"now": NOW + timedelta(hours=1)}, RunReason.DEADLINE_PASSED),
        ({"not_before": NOW + timedelta(minutes=30)}, {}, RunReason.JOB_INVALID),
        ({"not_after": NOW + timedelta(days=400)}, {}, RunReason.JOB_INVALID),
        ({"submitter": "mallory"}, {}, RunReason.SUBMITTER_NOT_ADMITTED),
        (
            {"analysis": {"name": "other", "version": "1.0", "digest": DIGEST}},
            {},
            RunReason.ANALYSIS_NOT_ADMITTED,
        ),
        (
            {"analysis": {"name": "allele-frequency", "version": "1.1", "digest": DIGEST}},
            {},
            RunReason.ANALYSIS_NOT_ADMITTED,
        ),
        (
            {"analysis": {"name": "allele-frequency", "version": "1.0", "digest": OTHER}},
            {},
            RunReason.ANALYSIS_NOT_ADMITTED,
        ),
        ({}, {"manifest": None, "analysis_digest": ""}, RunReason.ANALYSIS_NOT_ADMITTED),
        ({}, {"dataset": None}, RunReason.DATASET_NOT_OFFERED),
        ({}, {"dataset": LocalDataset("FI-other", SNAPSHOT)}, RunReason.DATASET_NOT_OFFERED),
        ({}, {"dataset": LocalDataset("FI-aisnp", OTHER)}, RunReason.SNAPSHOT_CHANGED),
        ({"parameters": {}}, {}, RunReason.PARAMETER_INVALID),
        ({"parameters": {"variants": "nonsense"}}, {}, RunReason.PARAMETER_INVALID),
        ({"parameters": {"variants": "rs1", "shell": "rm"}}, {}, RunReason.PARAMETER_INVALID),
        ({"parameters": {"variants": "rs1,rs2,rs3"}}, {}, RunReason.TOO_MANY_VARIANTS),
        ({"parameters": {"region": "2:1-1001"}}, {}, RunReason.REGION_TOO_LARGE),
    ],
)
def test_each_ground_for_declining_has_its_reason(
    job_changes: dict[str, Any], view_changes: dict[str, Any], reason: RunReason
) -> None:
    assert admit(job(**job_changes), replace(VIEW, **view_changes)) == Declined(reason)


def test_a_question_of_exactly_the_largest_size_is_admitted() -> None:
    assert isinstance(admit(job(parameters={"region": "2:1-1000"}), VIEW), Admitted)
    assert isinstance(admit(job(parameters={"variants": "rs1,rs2,rs1"}), VIEW), Admitted)


def test_a_node_without_a_policy_admits_nobody() -> None:
    assert admit(job(), replace(VIEW, policy=Policy())) == Declined(RunReason.SUBMITTER_NOT_ADMITTED)


def test_anybody_may_be_admitted_by_a_star_but_only_to_listed_analyses() -> None:
    anybody = policy_of({"admission": {"submitters": ["*"]}})
    assert admit(job(submitter="bob"), replace(VIEW, policy=anybody)) == Declined(RunReason.ANALYSIS_NOT_ADMITTED)


def test_a_stranger_learns_nothing_about_the_datasets() -> None:
    stranger = job(submitter="mallory")
    answers = {admit(stranger, replace(VIEW, dataset=held)) for held in (None, VIEW.dataset, LocalDataset("x", OTHER))}
    assert answers == {Declined(RunReason.SUBMITTER_NOT_ADMITTED)}
