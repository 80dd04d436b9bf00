"""Four countries answer: exact figures, exact suppression, people in the loop, faults."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.commands import BIN, environment
from tests.support.demo_oracle import SEXES, Counts, Truth, plink2_counts, truth
from tests.support.local_federation import COUNTRIES, Federation, eventually

pytestmark = pytest.mark.slow

_ASKED = "rs12913832"


@pytest.fixture(scope="session")
def truths(demo_data: Path) -> dict[str, dict[str, Truth]]:
    return {c: truth(demo_data / c / "aisnp.vcf.gz", demo_data / c / "samples.tsv") for c in COUNTRIES}


@pytest.fixture(scope="session")
def everything(federation: Federation, demo_data: Path, truths: dict[str, dict[str, Truth]]) -> dict[str, Any]:
    """The result of one job over every variant of the demo data, by sex too."""
    names = [word for country in COUNTRIES for word in ("--dataset", f"{country}-aisnp")]
    variants = ",".join(truths["FI"])
    ended = federation.hansa(
        *("job", "submit", "allele-frequency", *names, "--param", f"variants={variants}", "--wait"),
        *("--param", "stratify=sex"),
    )
    assert ended.code == 0, ended.err
    return ended.document


def _by_rsid(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["rsid"] or entry["variant"]: entry for entry in result["variants"]}


def _agrees(cell: Mapping[str, Any], counts: Counts, *, released: bool) -> bool:
    if not released:
        said = [cell[name] for name in ("people", "ac", "an", "af", "ci95")]
        return cell["status"] == "suppressed" and said == [None] * 5
    figures = (cell["people"], cell["ac"], cell["an"])
    return cell["status"] == "released" and figures == (counts.people, counts.ac, counts.an)


@contextmanager
def _release_by_hand(federation: Federation, node: str) -> Iterator[None]:
    assert federation.at_node(node, "policy", "set", "release", "manual").code == 0
    try:
        yield
    finally:
        assert federation.at_node(node, "policy", "set", "release", "auto").code == 0


def test_the_four_nodes_are_connected_and_offer_their_datasets(federation: Federation) -> None:
    assert federation.connected() == set(COUNTRIES)
    offered = federation.hansa("datasets", "list").document["datasets"]
    assert {(item["dataset"], item["node"], item["build"]) for item in offered} == {
        (f"{country}-aisnp", country, "GRCh37") for country in COUNTRIES
    }


def test_every_released_count_is_that_of_plink2(everything: dict[str, Any], demo_data: Path, tmp_path: Path) -> None:
    counted = {country: plink2_counts(demo_data / country / "aisnp.vcf.gz", tmp_path) for country in COUNTRIES}
    compared = 0
    for rsid, entry in _by_rsid(everything).items():
        for country, cell in entry["countries"].items():
            if cell["status"] == "released":
                assert (cell["ac"], cell["an"]) == counted[country][rsid], (rsid, country)
                compared += 1
    assert compared > 100


def test_a_figure_is_suppressed_exactly_where_the_rule_says(
    everything: dict[str, Any], truths: dict[str, dict[str, Truth]]
) -> None:
    entries = _by_rsid(everything)
    assert set(entries) == set(truths["FI"])
    suppressed = 0
    for rsid, entry in entries.items():
        for country in COUNTRIES:
            known = truths[country][rsid].everybody
            assert _agrees(entry["countries"][country], known, released=known.passes), (rsid, country)
            suppressed += not known.passes
    # The data has both kinds, else the test would prove little.
    assert 20 < suppressed < 100


def test_strata_leave_together_exactly_where_the_rule_says(
    everything: dict[str, Any], truths: dict[str, dict[str, Truth]]
) -> None:
    shown = 0
    for rsid, entry in _by_rsid(everything).items():
        for country in COUNTRIES:
            known, strata = truths[country][rsid], entry["countries"][country].get("strata", {})
            for sex in SEXES:
                cell = strata.get(sex, dict.fromkeys(("people", "ac", "an", "af", "ci95"), None))
                cell.setdefault("status", "suppressed")
                assert _agrees(cell, known.by_sex[sex], released=known.strata_pass), (rsid, country, sex)
            shown += known.strata_pass
    assert shown > 20


def test_pooled_is_the_sum_of_the_released_figures_and_says_when_it_lacks_a_country(everything: dict[str, Any]) -> None:
    for rsid, entry in _by_rsid(everything).items():
        released = [cell for cell in entry["countries"].values() if cell["status"] == "released"]
        pooled = entry["pooled"]
        assert pooled["partial"] is (len(released) < len(COUNTRIES)), rsid
        for figure in ("people", "ac", "an"):
            assert pooled[figure] == (sum(cell[figure] for cell in released) if released else None), rsid
        if released:
            low, high = pooled["ci95"]
            assert low < pooled["af"] < high


def test_an_unknown_variant_gets_the_same_answer_as_one_that_too_few_carry(
    federation: Federation, datasets: list[str], truths: dict[str, dict[str, Truth]]
) -> None:
    rare = next(rsid for rsid, known in truths["FI"].items() if not known.everybody.passes)
    answers = []
    for name in (rare, "rs999999999"):
        ended = federation.hansa(
            "job", "submit", "allele-frequency", "--dataset", "FI-aisnp", "--param", f"variants={name}", "--wait"
        )
        assert ended.code == 1
        document = ended.document
        document.pop("job_id")
        for node in document["nodes"]:
            # Of this one release: it says which job it is about.
            assert node.pop("statement").startswith("sha256:")
        answers.append(repr(document).replace(name, "NAME"))
    assert answers[0] == answers[1]


def test_a_run_waits_in_the_airlock_until_a_person_releases_it(federation: Federation) -> None:
    with _release_by_hand(federation, "ES"):
        job = federation.submit(
            "--dataset", "ES-aisnp", "--dataset", "FI-aisnp", "--param", f"variants={_ASKED}", "--quorum", "2"
        )
        eventually(lambda: federation.run_state(job, "ES") == "AWAITING_RELEASE", "the run of ES waits")
        assert federation.job(job)["state"] == "PENDING"
        (waiting,) = federation.runs_waiting_at("ES")
        shown = federation.at_node("ES", "airlock", "show", waiting["run_id"], "--output", "json").document
        assert shown["summary"]["axes"]["variant"] == ["15:28365618:A:G"]
        assert federation.hansa("job", "result", job).code == 1
        released = federation.decide("ES", "release", waiting["run_id"], "plain counts")
        assert released.code == 0, released.err
    watched = federation.hansa("job", "watch", job)
    assert watched.code == 0
    result = federation.hansa("job", "result", job).document
    assert result["variants"][0]["countries"]["ES"]["status"] == "released"
    assert federation.runs_waiting_at("ES") == []


def test_a_withheld_summary_never_reaches_the_researcher(federation: Federation) -> None:
    with _release_by_hand(federation, "ES"):
        job = federation.submit("--dataset", "ES-aisnp", "--param", f"variants={_ASKED}")
        eventually(lambda: federation.run_state(job, "ES") == "AWAITING_RELEASE", "the run of ES waits")
        (waiting,) = federation.runs_waiting_at("ES")
        assert federation.decide("ES", "withhold", waiting["run_id"], "not this one").code == 0
        again = federation.decide("ES", "release", waiting["run_id"], "after all")
        assert again.code == 1
    eventually(lambda: federation.job(job)["state"] == "WITHHELD", "the job is withheld")
    ended = federation.hansa("job", "result", job)
    assert ended.code == 1
    assert "not this one" not in ended.out + ended.err


def test_a_cancelled_job_ends_at_its_node_too(federation: Federation) -> None:
    with _release_by_hand(federation, "IT"):
        job = federation.submit("--dataset", "IT-aisnp", "--param", f"variants={_ASKED}")
        eventually(lambda: federation.run_state(job, "IT") == "AWAITING_RELEASE", "the run of IT waits")
        assert federation.hansa("job", "cancel", job).code == 0
        eventually(lambda: federation.job(job)["state"] == "CANCELLED", "the job is cancelled")
        assert federation.runs_waiting_at("IT") == []
    again = federation.hansa("job", "cancel", job)
    assert (again.code, again.reason) == (1, "JOB_ENDED")


def test_a_job_that_nobody_releases_in_time_expires(federation: Federation) -> None:
    with _release_by_hand(federation, "IT"):
        ended = federation.hansa(
            *("job", "submit", "allele-frequency", "--dataset", "IT-aisnp", "--param", f"variants={_ASKED}"),
            *("--deadline", "4s", "--wait"),
        )
        assert ended.code == 4
        assert ended.document["state"] == "EXPIRED"
        eventually(lambda: federation.runs_waiting_at("IT") == [], "the run of IT has ended")


def test_a_killed_agent_comes_back_by_itself_and_its_waiting_job_finishes(federation: Federation) -> None:
    agent = federation.layout.node("FI").agent.running()
    assert agent is not None
    os.kill(agent.pid, signal.SIGKILL)
    eventually(lambda: "FI" not in federation.connected(), "FI counts as unreachable")
    job = federation.submit("--dataset", "FI-aisnp", "--dataset", "GB-aisnp", "--param", f"variants={_ASKED}")
    eventually(lambda: federation.run_state(job, "GB") == "RELEASED", "GB has answered")
    assert federation.job(job)["state"] == "PENDING"
    federation.restart_node("FI")
    watched = federation.hansa("job", "watch", job)
    assert watched.code == 0, watched.err
    (entry,) = federation.hansa("job", "result", job).document["variants"]
    assert {name: cell["status"] for name, cell in entry["countries"].items()} == {"FI": "released", "GB": "released"}
    assert federation.connected() == set(COUNTRIES)


def test_a_job_at_a_node_whose_worker_was_killed_waits_for_the_next_one(federation: Federation) -> None:
    worker = federation.layout.node("GB").worker.running()
    assert worker is not None
    os.killpg(worker.pid, signal.SIGKILL)
    job = federation.submit("--dataset", "GB-aisnp", "--param", f"variants={_ASKED}")
    federation.restart_node("GB")
    assert federation.hansa("job", "watch", job).code == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_agents_come_back_by_themselves_when_the_coordinator_was_gone(
    federation: Federation, how: signal.Signals
) -> None:
    layout = federation.layout
    coordinator = layout.coordinator.running()
    assert coordinator is not None
    coordinator.signal(how)
    eventually(lambda: not coordinator.alive(), "the coordinator has ended")
    layout.coordinator.start(layout.root, environment())
    eventually(lambda: federation.hansa("nodes", "list").code == 0, "the coordinator answers")
    eventually(lambda: federation.connected() == set(COUNTRIES), "all nodes are connected")
    job = federation.submit("--dataset", "ES-aisnp", "--param", f"variants={_ASKED}")
    assert federation.hansa("job", "watch", job).code == 0


def test_a_second_agent_with_the_same_state_folder_is_refused(federation: Federation) -> None:
    profile = str(federation.layout.node("ES").profile)
    second = subprocess.run(
        [str(BIN / "hansa-node"), "--profile", profile, "run"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert second.returncode != 0
    assert "AGENT_RUNNING" in second.stdout + second.stderr
    assert federation.layout.node("ES").agent.running() is not None
    assert "ES" in federation.connected()
