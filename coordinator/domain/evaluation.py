"""What becomes of a job: a pure function of its runs, its nodes and the time.

The state of a job is derived (``hansa.contract.states.job_state``). This module
adds what follows from it for runs that are still open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from coordinator.domain.records import Contact, JobRecord, RunRecord
from hansa.contract.limits import SESSION_SILENCE
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, JobState, RunState, RunView, job_state

# A run that is at work keeps its job waiting, whatever it did before.
_AT_WORK: Final = frozenset({RunState.ACCEPTED, RunState.QUEUED, RunState.STAGING, RunState.RUNNING, RunState.CHECKING})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The state a job has come to, and what follows for its runs.

    ``moves`` are new states of runs; ``cancels`` the runs whose nodes are to be
    told that nobody waits for them any more.
    """

    state: JobState
    moves: tuple[tuple[str, RunState], ...] = ()
    cancels: tuple[RunRecord, ...] = ()


def is_reachable(contact: Contact, now: datetime) -> bool:
    """Say whether a node counts as reachable.

    A node that dropped counts as reachable for one session silence more: a
    restart or a short partition must not change what a job waits for.
    """
    if contact.connected:
        return True
    return contact.since is not None and now < contact.since + SESSION_SILENCE


def may_end_a_job(state: RunState) -> bool:
    """Say whether a run's coming to ``state`` can bring its job to another state."""
    return state not in _AT_WORK


def evaluate(job: JobRecord, now: datetime) -> Evaluation:
    """Return the state of the job at ``now`` and what follows for its runs.

    A job that has ended stays as it ended, and nothing follows. When the
    deadline has passed, open runs are expired here whatever their nodes do;
    when the job ends before, or its end is wished for, they are being
    cancelled until their nodes confirm it.
    """
    if job.state in JOB_TERMINAL:
        return Evaluation(job.state)
    expired = now >= job.not_after
    views = [RunView(run.state, is_reachable(run.contact, now), run.stored, run.empty) for run in job.runs]
    state = job_state(views, quorum=job.quorum, cancelled=job.cancel_requested, expired=expired)
    if state is JobState.PENDING:
        return Evaluation(state)
    open_ = [run for run in job.runs if run.state not in RUN_TERMINAL]
    to_cancel = [run for run in open_ if run.state is not RunState.CANCELLING]
    moves = _moves(open_, RunState.EXPIRED) if expired else _moves(to_cancel, RunState.CANCELLING)
    return Evaluation(state, moves, tuple(to_cancel))


def _moves(runs: Sequence[RunRecord], state: RunState) -> tuple[tuple[str, RunState], ...]:
    return tuple((run.run_id, state) for run in runs)
