from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hansa.contract.directory import DirectoryProject
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec, check_quorum, check_window, parse_job
from hansa.contract.raw_keys import key_text
from hansa.contract.release import ReleaseClass
from hansa.sdk.request import Fresh, JobRequest, build_job, check_request
from hansa.trust.view import TrustView
from tests.support.catalogue_answers import ANALYSIS, FILES, dataset
from tests.support.trust_world import PROJECT, TrustWorld, build_trust_world

NOW = datetime(2025, 11, 22, 16, 0, tzinfo=UTC)
FRESH = Fresh(submitter="ada", now=NOW, job_id="019aa0de-0000-7000-8000-000000000001", nonce="0" * 32)
OFFERED = [
    dataset("GB-lct", "GB"),
    dataset("FI-lct", "FI"),
    dataset("FI-brca", "FI"),
    dataset("ES-lct", "ES", "GRCh38"),
    dataset("shared", "GB"),
    dataset("shared", "IT"),
]
DATASETS = {"GB": "GB-lct", "FI": "FI-lct", "ES": "ES-lct", "IT": "shared"}
WORLD = build_trust_world(FILES, datasets=DATASETS, now=NOW)
VIEW = WORLD.view


def ask(*datasets: str, **changes: Any) -> JobRequest:
    fields: dict[str, Any] = {
        "analysis": "allele-frequency",
        "project": PROJECT,
        "datasets": datasets,
        "parameters": {"variants": "chr15:28365618:A:G"},
        "lifetime": timedelta(hours=1),
    }
    return JobRequest(**(fields | changes))


def build(request: JobRequest, view: TrustView = VIEW) -> JobSpec:
    return build_job(request, view, OFFERED, fresh=FRESH)


def refusal(request: JobRequest, view: TrustView = VIEW) -> tuple[Reason, str]:
    with pytest.raises(HansaError) as caught:
        build(request, view)
    return caught.value.reason, caught.value.field


def test_a_job_names_nodes_snapshots_and_parameters_in_normal_form() -> None:
    spec = build(ask("FI-lct", "GB-lct"))
    assert spec.nodes == ("FI", "GB")
    assert spec.dataset_at("GB").snapshot == f"sha256:{'b' * 64}"
    assert spec.parameters == {"variants": "15:28365618:A:G"}
    assert spec.not_after == NOW + timedelta(hours=1)


def test_every_node_must_answer_unless_a_quorum_is_given() -> None:
    assert build(ask("FI-lct", "GB-lct")).quorum == 2
    assert build(ask("FI-lct", "GB-lct", quorum=1)).quorum == 1


def test_what_is_built_is_what_coordinator_and_node_parse() -> None:
    spec = build(ask("FI-lct", "GB-lct"))
    parsed = parse_job(spec.to_bytes())
    assert parsed == spec
    check_quorum(parsed)
    check_window(parsed, NOW)


def test_an_unknown_dataset_is_refused() -> None:
    assert refusal(ask("FI-lct", "FR-lct")) == (Reason.DATASET_UNKNOWN, "dataset")


def test_two_datasets_of_one_node_are_refused() -> None:
    assert refusal(ask("FI-lct", "FI-brca")) == (Reason.DATASETS_OVERLAP, "dataset")


def test_an_id_that_two_nodes_use_needs_the_node_s_name() -> None:
    assert refusal(ask("shared")) == (Reason.DATASETS_OVERLAP, "dataset")
    assert build(ask("IT/shared")).nodes == ("IT",)


def test_two_genome_builds_in_one_job_are_refused() -> None:
    assert refusal(ask("FI-lct", "ES-lct")) == (Reason.BUILD_MISMATCH, "dataset")


@pytest.mark.parametrize(
    ("parameters", "reason", "field"),
    [
        ({}, Reason.PARAMETER_MISSING, "variants"),
        ({"variants": "rs1", "region": "1:1-2"}, Reason.PARAMETER_MISSING, "variants"),
        ({"variants": "15:28365618:A"}, Reason.PARAMETER_INVALID, "variants"),
        ({"region": "2:20-10"}, Reason.PARAMETER_INVALID, "region"),
        ({"variants": "rs1", "stratify": "age"}, Reason.PARAMETER_INVALID, "stratify"),
        ({"variants": "rs1", "x": "1"}, Reason.PARAMETER_UNKNOWN, "x"),
    ],
)
def test_parameters_are_judged_by_the_manifest(parameters: dict[str, str], reason: Reason, field: str) -> None:
    assert refusal(ask("FI-lct", parameters=parameters)) == (reason, field)


def test_a_job_too_large_to_be_accepted_is_refused_before_it_is_sent() -> None:
    many = ",".join(f"rs{number}" for number in range(100_000, 109_000))
    assert refusal(ask("FI-lct", parameters={"variants": many})) == (Reason.PARAMETER_INVALID, "parameters")


def test_the_digest_is_that_of_the_verified_repository_and_the_directory_is_named() -> None:
    spec = build(ask("FI-lct", purpose="lactase persistence", release_class=ReleaseClass.DUAL))
    assert spec.analysis.digest == ANALYSIS.digest
    assert (spec.federation, spec.directory_version, spec.project) == ("demo", 1, PROJECT)
    assert (spec.purpose, spec.release_class, spec.recipient_key) == ("lactase persistence", ReleaseClass.DUAL, None)


def test_an_analysis_that_is_not_there_is_refused() -> None:
    assert refusal(ask("FI-lct", analysis="other")) == (Reason.ANALYSIS_UNKNOWN, "analysis")
    assert refusal(ask("FI-lct", version="2.0")) == (Reason.ANALYSIS_UNKNOWN, "analysis")


def changed(**project: Any) -> TrustWorld:
    world = build_trust_world(FILES, datasets=DATASETS, now=NOW, keys=WORLD.keys)
    fields = {**world.directory.projects[0].model_dump(), **project}
    world.change(projects=(DirectoryProject.model_validate(fields),))
    return world


def test_an_analysis_without_its_votes_is_refused() -> None:
    world = build_trust_world(FILES, datasets=DATASETS, now=NOW)
    world.bundles = [world.vote(world.bundle(FILES), "rev1", "rev3")]
    world.publish()
    assert refusal(ask("FI-lct"), world.view) == (Reason.ANALYSIS_UNKNOWN, "analysis")


@pytest.mark.parametrize(
    ("project", "field"),
    [
        ({"researchers": ("bob",)}, "project"),
        ({"valid_until": NOW}, "project"),
        ({"analyses": ("allele-frequency@2.0",)}, "analysis"),
        ({"datasets": ("GB/GB-lct",)}, "dataset"),
    ],
)
def test_what_the_project_does_not_allow_is_refused_before_it_is_signed(project: dict[str, Any], field: str) -> None:
    assert refusal(ask("FI-lct"), changed(**project).view) == (Reason.PERMISSION_DENIED, field)


def test_the_one_project_of_a_researcher_need_not_be_named_and_of_several_one_must() -> None:
    assert build(replace(ask("FI-lct"), project="")).project == PROJECT
    world = build_trust_world(FILES, datasets=DATASETS, now=NOW, keys=WORLD.keys)
    first = world.directory.projects[0]
    world.change(projects=(first, first.model_copy(update={"project": "another"})))
    assert refusal(replace(ask("FI-lct"), project=""), world.view) == (Reason.PERMISSION_DENIED, "project")
    world.change(projects=())
    assert refusal(replace(ask("FI-lct"), project=""), world.view) == (Reason.PERMISSION_DENIED, "project")


def test_a_project_of_others_looks_like_one_that_is_not_there() -> None:
    with pytest.raises(HansaError) as others:
        build(ask("FI-lct"), changed(researchers=("bob",)).view)
    with pytest.raises(HansaError) as none:
        build(ask("FI-lct", project="no-such"))
    assert others.value.public.replace(PROJECT, "no-such") == none.value.public


def test_a_job_is_sealed_where_it_is_asked_and_where_the_project_demands_it() -> None:
    mine = key_text(WORLD.recipients["ada"].public_key())
    assert build(ask("FI-lct", seal=True)).recipient_key == mine
    sealed = changed(sealed=True)
    assert build(ask("FI-lct"), sealed.view).recipient_key == key_text(sealed.recipients["ada"].public_key())


def test_nothing_is_sealed_to_nobody() -> None:
    world = build_trust_world(FILES, datasets=DATASETS, now=NOW)
    people = tuple(one.model_copy(update={"recipient_key": None}) for one in world.directory.people)
    world.change(people=people)
    assert refusal(ask("FI-lct", seal=True), world.view) == (Reason.KEY_INVALID, "recipient_key")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ask("a", quorum=0), Reason.QUORUM_INVALID),
        (ask("a", quorum=2), Reason.QUORUM_INVALID),
        (ask("a", quorum=-1), Reason.QUORUM_INVALID),
        (ask("a", lifetime=timedelta()), Reason.DEADLINE_INVALID),
        (ask("a", lifetime=timedelta(days=367)), Reason.DEADLINE_INVALID),
        (ask("a", "a"), Reason.MALFORMED),
        (ask(), Reason.MALFORMED),
    ],
)
def test_what_is_wrong_without_asking_anybody_is_found_first(request_: JobRequest, reason: Reason) -> None:
    with pytest.raises(HansaError) as caught:
        check_request(request_)
    assert caught.value.reason is reason
