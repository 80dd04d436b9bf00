"""The words on what a job waits for, and why it ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.domain.explanation import Answers, answers, explain, unreachable_since, waiting
from coordinator.domain.records import Contact, JobRecord, RunRecord
from hansa.contract.states import RUN_TERMINAL, JobState, RunState

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def run(node: str, state: RunState, *, reason: str = "", stored: bool = False, away: int = 0) -> RunRecord:
    contact = Contact(connected=not away, since=NOW - timedelta(minutes=away))
    return RunRecord(
        run_id=node,
        node=node,
        dataset="d",
        state=state,
        contact=contact,
        updated_at=NOW,
        reason=reason,
        stored=stored,
    )


def job(state: JobState, quorum: int, *runs: RunRecord) -> JobRecord:
    return JobRecord(
        job_id="j",
        submitter="ada",
        analysis_name="allele-frequency",
        analysis_version="1.0",
        analysis_digest="d",
        state=state,
        quorum=quorum,
        submitted_at=NOW,
        not_after=NOW + timedelta(hours=1),
        runs=runs,
    )


FI = run("FI", RunState.RELEASED, stored=True)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (
            job(JobState.PENDING, 3, FI, run("ES", RunState.AWAITING_RELEASE), run("IT", RunState.RUNNING, away=5)),
            (
                "not enough nodes: 2 of 3; ES: waits for an output checker since 2026-05-01 12:00 UTC; "
                "IT: unreachable since 2026-05-01 11:55 UTC; last state RUNNING since 2026-05-01 12:00 UTC"
            ),
        ),
        (
            job(JobState.PENDING, 1, replace(FI, stored=False)),
            "0 of 1 answers; FI: the released summary is on its way since 2026-05-01 12:00 UTC",
        ),
        (
            job(JobState.PENDING, 2, FI, replace(run("ES", RunState.OFFERED), contact=Contact(False, None))),  # noqa: FBT003
            "not enough nodes: 1 of 2; ES: unreachable so far; last state OFFERED since 2026-05-01 12:00 UTC",
        ),
        (
            job(JobState.COMPLETED, 1, FI, run("ES", RunState.WITHHELD, reason="WITHHELD")),
            "1 of 2 nodes answered; the quorum was 1",
        ),
        (job(JobState.WITHHELD, 1, FI), "the nodes may not say anything about what was asked"),
        (
            job(JobState.DECLINED, 2, FI, run("ES", RunState.DECLINED, reason="NODE_BUSY")),
            "the quorum of 2 is out of reach; ES: declined (NODE_BUSY)",
        ),
        (
            job(JobState.EXPIRED, 2, FI, run("ES", RunState.EXPIRED)),
            "the deadline passed with 1 of 2 answers needed; ES: did not answer in time",
        ),
        (job(JobState.CANCELLED, 1, run("FI", RunState.CANCELLED)), "cancelled by its researcher"),
    ],
)
def test_a_job_says_what_it_waits_for_or_why_it_ended(shown: JobRecord, words: str) -> None:
    assert explain(shown, NOW) == words


def test_every_open_state_has_words_and_says_since_when() -> None:
    for state in set(RunState) - RUN_TERMINAL:
        assert waiting(run("FI", state), NOW).endswith(" since 2026-05-01 12:00 UTC")
    for state in RUN_TERMINAL - {RunState.RELEASED}:
        assert waiting(run("FI", state), NOW) == ""


def test_answers_that_cannot_come_any_more_are_out_of_reach() -> None:
    away, gone = run("IT", RunState.RUNNING, away=5), run("SE", RunState.FAILED)
    assert answers(job(JobState.PENDING, 2, FI, away, gone, run("ES", RunState.QUEUED)), NOW) == Answers(1, 2)
    assert answers(job(JobState.COMPLETED, 1, FI, run("ES", RunState.CANCELLED)), NOW) == Answers(1, 1)


def test_a_node_is_unreachable_only_where_its_run_is_open() -> None:
    assert unreachable_since(run("FI", RunState.RUNNING, away=5), NOW) == NOW - timedelta(minutes=5)
    assert unreachable_since(run("FI", RunState.RUNNING), NOW) is None
    assert unreachable_since(run("FI", RunState.FAILED, away=5), NOW) is None
