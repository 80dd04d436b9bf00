"""The words on what a job waits for, and why it ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.domain.explanation import explain
from coordinator.domain.records import Contact, JobRecord, RunRecord
from hansa.contract.states import JobState, RunState

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
            "ES: waits for an output checker; IT: unreachable since 2026-05-01 11:55 UTC",
        ),
        (job(JobState.PENDING, 1, replace(FI, stored=False)), "FI: the released summary is on its way"),
        (
            job(JobState.PENDING, 2, FI, replace(run("ES", RunState.OFFERED), contact=Contact(False, None))),  # noqa: FBT003
            "ES: unreachable so far",
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
