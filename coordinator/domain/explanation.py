"""What a job waits for, or why it ended, in words for people.

The words are made of enumerated states, reasons and the names of nodes; no
text of a node or of a run is ever repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from coordinator.domain.evaluation import is_reachable
from coordinator.domain.records import JobRecord, RunRecord
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, JobState, RunState

_OPEN: Final[Mapping[RunState, str]] = {
    RunState.OFFERED: "has not answered the offer yet",
    RunState.ACCEPTED: "accepted",
    RunState.AWAITING_APPROVAL: "waits for the data holder's approval",
    RunState.QUEUED: "queued",
    RunState.STAGING: "prepares the data",
    RunState.RUNNING: "runs",
    RunState.CHECKING: "checks the summary",
    RunState.AWAITING_RELEASE: "waits for an output checker",
    RunState.CANCELLING: "is cancelling",
}
_ENDED: Final[Mapping[RunState, str]] = {
    RunState.DECLINED: "declined",
    RunState.WITHHELD: "withheld",
    RunState.FAILED: "failed",
    RunState.EXPIRED: "did not answer in time",
    RunState.CANCELLED: "cancelled",
}


def explain(job: JobRecord, now: datetime) -> str:
    """Return what the job waits for at ``now``, or why it ended."""
    if job.state in JOB_TERMINAL:
        return _ending(job)
    parts = [f"{run.node}: {words}" for run in job.runs if (words := _waiting(run, now))]
    return "; ".join(parts)


def _waiting(run: RunRecord, now: datetime) -> str:
    if run.state in RUN_TERMINAL:
        late = run.state is RunState.RELEASED and not run.stored
        return "the released summary is on its way" if late else ""
    if not is_reachable(run.contact, now):
        return f"unreachable {_since(run.contact.since)}"
    return _OPEN[run.state]


def _since(moment: datetime | None) -> str:
    return "so far" if moment is None else f"since {moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _ending(job: JobRecord) -> str:
    arrived = sum(run.state is RunState.RELEASED and run.stored for run in job.runs)
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
