"""What a job waits for, or why it ended, in words for people.

The words are made of enumerated states, reasons and the names of nodes; no
text of a node or of a run is ever repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from coordinator.domain.evaluation import is_reachable
from coordinator.domain.records import JobRecord, RunRecord
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, JobState, RunState
from hansa.contract.waiting import WAITS_FOR, since

_ENDED: Final[Mapping[RunState, str]] = {
    RunState.DECLINED: "declined",
    RunState.WITHHELD: "withheld",
    RunState.FAILED: "failed",
    RunState.EXPIRED: "did not answer in time",
    RunState.CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Answers:
    """How many summaries are ``here``, and how many are here or may still come: are ``in_reach``."""

    here: int
    in_reach: int


def answers(job: JobRecord, now: datetime) -> Answers:
    """Return how far the job is with its answers at ``now``.

    A node that cannot be reached counts as out of reach until it is back; in
    a job that has ended, nothing comes any more.
    """
    here = sum(_has_arrived(run) for run in job.runs)
    if job.state in JOB_TERMINAL:
        return Answers(here, here)
    return Answers(here, sum(_has_arrived(run) or _may_answer(run, now) for run in job.runs))


def _has_arrived(run: RunRecord) -> bool:
    return run.state is RunState.RELEASED and run.stored


def _may_answer(run: RunRecord, now: datetime) -> bool:
    return (run.state is RunState.RELEASED or run.state not in RUN_TERMINAL) and is_reachable(run.contact, now)


def explain(job: JobRecord, now: datetime) -> str:
    """Return what the job waits for at ``now``, or why it ended."""
    if job.state in JOB_TERMINAL:
        return _ending(job)
    parts = [f"{run.node}: {words}" for run in job.runs if (words := waiting(run, now))]
    return "; ".join([_so_far(job, now), *parts])


def _so_far(job: JobRecord, now: datetime) -> str:
    count = answers(job, now)
    if count.in_reach < job.quorum:
        return f"not enough nodes: {count.in_reach} of {job.quorum}"
    return f"{count.here} of {job.quorum} answers"


def waiting(run: RunRecord, now: datetime) -> str:
    """Return what the run waits for at ``now``, and since when; empty if for nothing any more."""
    if run.state in RUN_TERMINAL:
        late = run.state is RunState.RELEASED and not run.stored
        return f"the released summary is on its way {since(run.updated_at)}" if late else ""
    if is_reachable(run.contact, now):
        return f"{WAITS_FOR[run.state]} {since(run.updated_at)}"
    return f"unreachable {since(run.contact.since)}; last state {run.state} {since(run.updated_at)}"


def unreachable_since(run: RunRecord, now: datetime) -> datetime | None:
    """Return since when nothing was heard of the node of an open run; None where it can be reached, or was never seen."""
    if run.state in RUN_TERMINAL or is_reachable(run.contact, now):
        return None
    return run.contact.since


def _ending(job: JobRecord) -> str:
    arrived = sum(_has_arrived(run) for run in job.runs)
    match job.state:
        case JobState.COMPLETED:
            return f"{arrived} of {len(job.runs)} nodes answered; the quorum was {job.quorum}"
        case JobState.WITHHELD if arrived >= job.quorum:
            return "the nodes may not say anything about what was asked"
        case JobState.CANCELLED:
            return "cancelled by its researcher"
        case JobState.EXPIRED:
            start = f"the deadline passed with {arrived} of {job.quorum} answers needed"
        case _:
            start = f"the quorum of {job.quorum} is out of reach"
    parts = [f"{run.node}: {_fate(run)}" for run in job.runs if run.state in _ENDED]
    return "; ".join([start, *parts])


def _fate(run: RunRecord) -> str:
    return f"{_ENDED[run.state]} ({run.reason})" if run.reason else _ENDED[run.state]
