"""The job commands as processes, against a double that can break and end at will."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import check_window
from hansa.contract.raw_keys import key_text
from hansa.runtime.clock import utc_now
from tests.support.coordinator_double import JOB, RUN, Script, closed_port, coordinator_double, write_profile
from tests.support.frequency_results import JOB_ID, encoded, two_countries_and_one_suppressed
from tests.support.hansa_command import Ended, ended, hansa, start
from tests.support.trust_world import PROJECT, build_trust_world

OTHER_JOB = "019aa0de-0000-7000-8000-000000000002"
ASK = (
    "job",
    "submit",
    "allele-frequency",
    "--dataset",
    "GB-lct",
    "--dataset",
    "FI-lct",
    "--param",
    "variants=rs12913832",
    "--project",
    PROJECT,
)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[tuple[Script, Path]]:
    with coordinator_double(tmp_path) as served:
        yield served


def ending(script: Script, state: Any) -> None:
    run = {JOB.COMPLETED: RUN.RELEASED, JOB.EXPIRED: RUN.EXPIRED}.get(state, RUN.DECLINED)
    script.watched = [
        [script.job(JOB.PENDING, GB=RUN.OFFERED, FI=RUN.OFFERED), script.job(state, GB=run, FI=RUN.RELEASED)]
    ]
    document = two_countries_and_one_suppressed(state=JOB.State.Name(state))
    script.result = encoded(document if state == JOB.COMPLETED else document | {"variants": []})


def test_submit_signs_a_whole_job_and_prints_its_id(double: tuple[Script, Path]) -> None:
    script, profile = double
    done = hansa(*ASK, "--quorum", "1", "--deadline", "30m", profile=profile)
    (spec,) = script.specs
    assert (done.code, done.out.strip(), done.err) == (0, spec.job_id, "")
    assert (spec.nodes, spec.quorum, spec.submitter) == (("GB", "FI"), 1, "ada")
    check_window(spec, utc_now())
    assert spec.not_after.timestamp() - spec.not_before.timestamp() == pytest.approx(1800)


def test_a_submission_whose_answer_is_lost_is_sent_again_byte_for_byte(double: tuple[Script, Path]) -> None:
    script, profile = double
    script.lose_submissions = 2
    done = hansa(*ASK, profile=profile)
    assert done.code == 0
    assert len(script.specs) == 3
    assert len({spec.to_bytes() for spec in script.specs}) == 1
    assert len(script.jobs) == 1


def test_who_is_told_to_come_again_comes_again_with_the_same_job_and_says_what_it_waits_for(
    double: tuple[Script, Path],
) -> None:
    script, profile = double
    script.refuse_submissions = [HansaError(Reason.QUOTA_EXCEEDED, "You have 9 open jobs.", retry_seconds=1.2)]
    done = hansa(*ASK, profile=profile)
    assert done.code == 0
    assert len({spec.to_bytes() for spec in script.specs}) == 1
    assert len(script.specs) == 2
    assert done.err.startswith("QUOTA_EXCEEDED: You have 9 open jobs. Trying again in ")


@pytest.mark.parametrize("seconds", [3600.0, 1e9])
def test_a_wait_that_would_be_too_long_is_none_and_has_an_exit_code_of_its_own(
    double: tuple[Script, Path], seconds: float
) -> None:
    script, profile = double
    script.refuse_submissions = [HansaError(Reason.COORDINATOR_DRAINING, retry_seconds=seconds)]
    done = hansa(*ASK, "--output", "json", profile=profile)
    assert (done.code, done.reason, len(script.specs)) == (6, "COORDINATOR_DRAINING", 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("job", "submit", "nothing", "--project", PROJECT, "--dataset", "GB-lct"), "ANALYSIS_UNKNOWN"),
        ((*ASK, "--dataset", "FR-lct"), "DATASET_UNKNOWN"),
        ((*ASK[:-3], "variants=1:2", "--project", PROJECT), "PARAMETER_INVALID"),
        ((*ASK[:-1], "no-project"), "PERMISSION_DENIED"),
        (("job", "show", "../../etc"), "JOB_UNKNOWN"),
        (("job", "watch", JOB_ID), "JOB_UNKNOWN"),
        (("job", "result", JOB_ID), "JOB_NOT_ENDED"),
    ],
)
def test_a_refusal_is_one_line_exit_code_1_and_no_job(
    double: tuple[Script, Path], arguments: tuple[str, ...], reason: str
) -> None:
    script, profile = double
    done = hansa(*arguments, profile=profile)
    assert (done.code, done.reason, done.out) == (1, reason, "")
    assert len(done.err.splitlines()) == 1
    assert not script.jobs


@pytest.mark.parametrize(("state", "code"), [(JOB.COMPLETED, 0), (JOB.DECLINED, 1), (JOB.EXPIRED, 4)])
def test_waiting_ends_with_the_result_and_the_exit_code_of_the_job_s_end(
    double: tuple[Script, Path], state: Any, code: int
) -> None:
    script, profile = double
    ending(script, state)
    done = hansa(*ASK, "--wait", "--output", "json", profile=profile)
    assert done.code == code
    assert done.document == json.loads(script.result) | {"job_id": script.specs[0].job_id}
    assert done.err.splitlines()[:2] == ["GB: OFFERED", "FI: OFFERED"]
    assert done.err.splitlines()[-1] == f"job {JOB_ID}: {JOB.State.Name(state)}"


def test_watching_and_reading_have_the_exit_code_of_the_job_s_end_too(double: tuple[Script, Path]) -> None:
    script, profile = double
    ending(script, JOB.EXPIRED)
    watched = hansa("job", "watch", JOB_ID, "--output", "json", profile=profile)
    read = hansa("job", "result", JOB_ID, profile=profile)
    assert (watched.code, read.code) == (4, 4)
    assert watched.document["nodes"][0]["state"] == "EXPIRED"
    assert "EXPIRED" in read.out


def test_a_broken_stream_is_taken_up_again(double: tuple[Script, Path]) -> None:
    script, profile = double
    ending(script, JOB.COMPLETED)
    pending = script.job(JOB.PENDING, GB=RUN.RUNNING)
    script.watched = [[pending], [], [pending], *script.watched]
    done = hansa(*ASK, "--wait", profile=profile)
    assert (done.code, script.watch_calls) == (0, 4)
    assert "connection lost, trying again" in done.err
    assert "294/380" in done.out


def test_every_call_has_a_token_of_its_own(double: tuple[Script, Path]) -> None:
    script, profile = double
    ending(script, JOB.COMPLETED)
    hansa(*ASK, "--wait", profile=profile)
    # The double refuses a token that comes twice; three pages, submit, watch, result; and of the trust repository
    # the next root (there is none), timestamp, snapshot, targets, and what tells which analyses there are.
    assert len(script.tokens) == 6 + 4 + 6


def test_what_was_verified_once_is_fetched_once(double: tuple[Script, Path]) -> None:
    script, profile = double
    assert hansa(*ASK, profile=profile).code == 0
    fetched = list(script.fetched)
    assert len([path for path in fetched if path.startswith("blobs/")]) == 1, "the manifest, and no code"
    assert hansa(*ASK, profile=profile).code == 0
    assert script.fetched == fetched


def test_a_job_is_of_the_directory_that_the_client_verified(double: tuple[Script, Path]) -> None:
    script, profile = double
    script.trust.change(witnesses=())
    assert hansa(*ASK, "--purpose", "milk", "--release-class", "manual", "--seal", profile=profile).code == 0
    (spec,) = script.specs
    assert (spec.federation, spec.directory_version, spec.project) == ("demo", 2, PROJECT)
    assert (spec.purpose, spec.release_class) == ("milk", "manual")
    assert spec.recipient_key == key_text(script.trust.recipients["ada"].public_key())
    assert spec.analysis == script.trust.analysis


def test_no_job_is_signed_on_an_older_directory_than_was_seen(double: tuple[Script, Path]) -> None:
    script, profile = double
    old = script.trust.files
    script.trust.change(witnesses=())
    assert hansa(*ASK, profile=profile).code == 0
    script.trust.files = old
    refused = hansa(*ASK, "--output", "json", profile=profile)
    assert (refused.code, refused.reason, len(script.specs)) == (1, "TRUST_ROLLBACK", 1)


def test_no_job_is_signed_on_another_federation_s_root(double: tuple[Script, Path]) -> None:
    script, profile = double
    (profile.parent / "root.json").write_bytes(build_trust_world().root)
    refused = hansa(*ASK, "--output", "json", profile=profile)
    assert (refused.code, refused.reason, script.specs) == (1, "TRUST_THRESHOLD", [])


def test_analyses_are_listed_with_their_votes_and_why_one_does_not_count(double: tuple[Script, Path]) -> None:
    script, profile = double
    world = script.trust
    bare = world.bundle(world.bundles[0].files)
    world.bundles = [world.vote(bare, "rev1", "author")]
    world.publish()
    (found,) = hansa("analysis", "list", "--output", "json", profile=profile).document["analyses"]
    assert (found["state"], found["author"], found["approved_by"]) == ("not approved", "author", ["rev1"])
    assert found["ignored"] == {"author": "The directory has no reviewer of this name."}
    shown = hansa("analysis", "list", profile=profile)
    assert "the vote of author does not count" in shown.out


def test_a_job_is_listed_shown_and_cancelled(double: tuple[Script, Path]) -> None:
    _, profile = double
    job_id = hansa(*ASK, profile=profile).out.strip()
    listed = hansa("job", "list", "--output", "json", profile=profile)
    assert [one["job_id"] for one in listed.document["jobs"]] == [job_id]
    assert job_id in hansa("job", "show", job_id, profile=profile).out
    cancelled = hansa("job", "cancel", job_id, "--output", "json", profile=profile)
    assert (cancelled.code, cancelled.document["state"]) == (0, "CANCELLING")


def test_ctrl_c_leaves_the_job_running_and_says_how_to_look_again(double: tuple[Script, Path]) -> None:
    script, profile = double
    script.watched = [[script.job(JOB.PENDING, GB=RUN.RUNNING), None]]
    process = start(*ASK, "--wait", profile=profile)
    assert process.stderr is not None
    assert process.stderr.readline() == "GB: RUNNING\n"
    process.send_signal(signal.SIGINT)
    done = ended(process)
    (job_id,) = script.jobs
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1].startswith(f"Job {job_id} goes on. Look again: hansa job watch {job_id}")


def test_a_plot_is_drawn_and_is_no_part_of_stdout(double: tuple[Script, Path], tmp_path: Path) -> None:
    script, profile = double
    ending(script, JOB.COMPLETED)
    plot = tmp_path / "plot.png"
    done = hansa("job", "result", JOB_ID, "--plot", plot, "--output", "json", profile=profile)
    assert (done.code, done.document["state"]) == (0, "COMPLETED")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_lists_are_read_to_their_end_and_escaped(double: tuple[Script, Path]) -> None:
    _, profile = double
    datasets = hansa("datasets", "list", "--output", "json", profile=profile)
    assert [one["dataset"] for one in datasets.document["datasets"]] == ["GB-lct", "FI-lct", "ES-lct"]
    nodes = hansa("nodes", "list", profile=profile)
    assert "connected" in nodes.out
    assert "\\x1b[2J" in nodes.out
    analyses = hansa("analyses", "list", profile=profile)
    assert "allele-frequency" in analyses.out
    shown = hansa("analyses", "show", "allele-frequency@1.0", profile=profile)
    assert "exactly one of variants, region" in shown.out


def unreachable(profile: Path) -> Ended:
    return hansa("nodes", "list", profile=profile)


def test_nobody_there_is_exit_code_3(double: tuple[Script, Path], tmp_path: Path) -> None:
    done = unreachable(write_profile(tmp_path, closed_port()))
    assert (done.code, done.reason, len(done.err.splitlines())) == (3, "COORDINATOR_UNREACHABLE", 1)


def test_a_server_with_another_ca_is_not_spoken_to(double: tuple[Script, Path], tmp_path: Path) -> None:
    script, profile = double
    (tmp_path / "other").mkdir()
    with coordinator_double(tmp_path / "other"):
        (tmp_path / "server-ca.pem").write_bytes((tmp_path / "other" / "server-ca.pem").read_bytes())
        done = unreachable(profile)
    assert (done.code, done.reason) == (3, "COORDINATOR_UNREACHABLE")
    assert not script.tokens, "a token was sent to a server that was not trusted"


def test_a_person_whom_the_coordinator_does_not_know_is_refused(double: tuple[Script, Path], tmp_path: Path) -> None:
    _, profile = double
    for half in ("ada", "ada.pub"):
        (tmp_path / half).unlink()
    assert (hansa("key", "create", tmp_path / "ada", profile=profile)).code == 0
    done = hansa("nodes", "list", "--output", "json", profile=profile)
    assert done.code == 1
    assert json.loads(done.err)["error"]["reason"] == "UNAUTHENTICATED"


def test_an_answer_about_another_job_is_refused(double: tuple[Script, Path]) -> None:
    """Who would verify that job instead would find that everything holds."""
    script, profile = double
    script.answers_as = OTHER_JOB
    done = hansa(*ASK, profile=profile)
    assert (done.code, done.reason, done.out) == (1, "MALFORMED", "")
    script.result = encoded(two_countries_and_one_suppressed() | {"job_id": OTHER_JOB})
    read = hansa("job", "result", JOB_ID, profile=profile)
    assert (read.code, read.reason, read.out) == (1, "MALFORMED", "")


def test_figures_that_nobody_has_proven_yet_are_said_to_be_the_coordinators(double: tuple[Script, Path]) -> None:
    script, profile = double
    ending(script, JOB.COMPLETED)
    read = hansa("job", "result", JOB_ID, profile=profile)
    assert read.code == 0
    assert f"hansa job verify {JOB_ID}" in read.err
    assert "verify" not in read.out


def test_a_result_that_is_none_is_refused(double: tuple[Script, Path]) -> None:
    script, profile = double
    script.result = b'{"job_id": "\\u001b[2J"}'
    done = hansa("job", "result", JOB_ID, profile=profile)
    assert (done.code, done.reason, done.out) == (1, "MALFORMED", "")
