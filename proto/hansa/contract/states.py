"""The state machines of a run and of a job: one table and one function each.

Coordinator and node drive the same run table. The node is the authority for
what happens at it; the coordinator follows the node's reports (``follow``) and
adds only what it alone knows, a wish to cancel and a deadline.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


class RunState(enum.StrEnum):
    """Where a run stands (design.md, section 2)."""

    OFFERED = "OFFERED"
    ACCEPTED = "ACCEPTED"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    QUEUED = "QUEUED"
    STAGING = "STAGING"
    RUNNING = "RUNNING"
    CHECKING = "CHECKING"
    AWAITING_RELEASE = "AWAITING_RELEASE"
    RELEASED = "RELEASED"
    DECLINED = "DECLINED"
    WITHHELD = "WITHHELD"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


class RunEvent(enum.StrEnum):
    """What can happen to a run at its node."""

    ACCEPT = "ACCEPT"
    ASK_APPROVAL = "ASK_APPROVAL"
    APPROVE = "APPROVE"
    DECLINE = "DECLINE"
    QUEUE = "QUEUE"
    STAGE = "STAGE"
    START = "START"
    LOSE_LEASE = "LOSE_LEASE"
    COLLECT = "COLLECT"
    ASK_RELEASE = "ASK_RELEASE"
    RELEASE = "RELEASE"
    WITHHOLD = "WITHHOLD"
    FAIL = "FAIL"
    EXPIRE = "EXPIRE"
    CANCEL = "CANCEL"
    CONFIRM_CANCELLED = "CONFIRM_CANCELLED"


_S, _E = RunState, RunEvent

RUN_TRANSITIONS: Final[Mapping[tuple[RunState, RunEvent], RunState]] = {
    (_S.OFFERED, _E.ACCEPT): _S.ACCEPTED,
    (_S.OFFERED, _E.ASK_APPROVAL): _S.AWAITING_APPROVAL,
    (_S.OFFERED, _E.DECLINE): _S.DECLINED,
    (_S.AWAITING_APPROVAL, _E.APPROVE): _S.ACCEPTED,
    (_S.AWAITING_APPROVAL, _E.DECLINE): _S.DECLINED,
    (_S.ACCEPTED, _E.QUEUE): _S.QUEUED,
    (_S.QUEUED, _E.STAGE): _S.STAGING,
    (_S.STAGING, _E.START): _S.RUNNING,
    # A lost worker costs an execution, never the run.
    (_S.STAGING, _E.LOSE_LEASE): _S.QUEUED,
    (_S.RUNNING, _E.LOSE_LEASE): _S.QUEUED,
    (_S.STAGING, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.FAIL): _S.FAILED,
    (_S.QUEUED, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.COLLECT): _S.CHECKING,
    (_S.CHECKING, _E.FAIL): _S.FAILED,
    (_S.CHECKING, _E.ASK_RELEASE): _S.AWAITING_RELEASE,
    (_S.CHECKING, _E.RELEASE): _S.RELEASED,
    (_S.CHECKING, _E.WITHHOLD): _S.WITHHELD,
    (_S.AWAITING_RELEASE, _E.RELEASE): _S.RELEASED,
    (_S.AWAITING_RELEASE, _E.WITHHOLD): _S.WITHHELD,
    **{
        (state, _E.EXPIRE): _S.EXPIRED
        for state in (
            _S.OFFERED,
            _S.ACCEPTED,
            _S.AWAITING_APPROVAL,
            _S.QUEUED,
            _S.STAGING,
            _S.RUNNING,
            _S.CHECKING,
            _S.AWAITING_RELEASE,
            _S.CANCELLING,
        )
    },
    **{
        (state, _E.CANCEL): _S.CANCELLING
        for state in (
            _S.OFFERED,
            _S.ACCEPTED,
            _S.AWAITING_APPROVAL,
            _S.QUEUED,
            _S.STAGING,
            _S.RUNNING,
            _S.CHECKING,
            _S.AWAITING_RELEASE,
        )
    },
    # Only once the executor has confirmed that nothing runs any more.
    (_S.CANCELLING, _E.CONFIRM_CANCELLED): _S.CANCELLED,
}

RUN_TERMINAL: Final = frozenset(RunState) - {state for state, _ in RUN_TRANSITIONS}

# States in which the run waits for a person, who may take days.
RUN_WAITS_FOR_PERSON: Final = frozenset({_S.AWAITING_APPROVAL, _S.AWAITING_RELEASE})


class IllegalTransitionError(Exception):
    """The table has no row for this state and event."""

    def __init__(self, state: RunState, event: RunEvent) -> None:
        """Name the pair."""
        self.state, self.event = state, event
        super().__init__(f"no transition from {state} by {event}")


def next_run_state(state: RunState, event: RunEvent) -> RunState:
    """Return the state ``event`` leads to.

    Raises:
        IllegalTransitionError: the table has no row for the pair; a repeat of
            an event is illegal too, callers drop repeats first.
    """
    try:
        return RUN_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransitionError(state, event) from None


def follow(known: RunState, reported: RunState) -> RunState:
    """Return what the coordinator holds of a run after the node's report.

    A terminal state is final. A wish to cancel is kept until the node reports
    an end: "cancelled" is shown only once the node has confirmed it.
    """
    if known in RUN_TERMINAL:
        return known
    if known is RunState.CANCELLING and reported not in RUN_TERMINAL:
        return known
    return reported


def adopt(own: RunState, recorded: RunState) -> RunState:
    """Return what a node holds of a run after its store was restored from a backup.

    What is recorded elsewhere is what this node has reported: an end that the
    restored store has forgotten is taken over. Its own release is never undone.
    """
    if own is RunState.RELEASED or recorded not in RUN_TERMINAL:
        return own
    return recorded


class JobState(enum.StrEnum):
    """Where a job stands; always derived from its runs."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    DECLINED = "DECLINED"
    WITHHELD = "WITHHELD"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


JOB_TERMINAL: Final = frozenset(JobState) - {JobState.PENDING, JobState.CANCELLING}

# When a quorum is out of reach, the first of these that some run ended in names
# the job's end: what an operator can mend comes first.
_BLAME: Final = (
    (RunState.FAILED, JobState.FAILED),
    (RunState.DECLINED, JobState.DECLINED),
    (RunState.WITHHELD, JobState.WITHHELD),
    (RunState.EXPIRED, JobState.EXPIRED),
    (RunState.CANCELLED, JobState.CANCELLED),
)


@dataclass(frozen=True, slots=True)
class RunView:
    """What a job's state depends on, of one run.

    ``stored`` says that the summary of a released run is in the store,
    ``empty`` that every figure in it is suppressed; ``reachable`` that the
    run's node is connected.
    """

    state: RunState
    reachable: bool = True
    stored: bool = True
    empty: bool = False


def job_state(runs: Sequence[RunView], *, quorum: int, cancelled: bool, expired: bool) -> JobState:
    """Return the state of a job from its runs.

    The job waits for nodes that are at work, and for their summaries to
    arrive. Once the quorum is met it does not wait for a node that is
    unreachable or for a person, and after the deadline (``expired``) for
    nobody. Once the quorum is out of reach it ends at once. A job to which no
    node may say anything is withheld: an unknown variant and one that too few
    carry get the same answer.

    Args:
        runs: one view per run of the job's last round, at least one.
        quorum: how many must be released, 1 to ``len(runs)``.
        cancelled: the researcher has asked for an end.
        expired: the deadline has passed.
    """
    released = [run for run in runs if run.state is RunState.RELEASED]
    arrived = [run for run in released if run.stored]
    open_ = [run for run in runs if run.state not in RUN_TERMINAL]
    if cancelled:
        return JobState.CANCELLING if open_ and not expired else JobState.CANCELLED
    waiting = [run for run in open_ if run.reachable and run.state not in RUN_WAITS_FOR_PERSON]
    waiting += [run for run in released if not run.stored and run.reachable]
    if len(arrived) >= quorum and (expired or not waiting):
        return JobState.WITHHELD if all(run.empty for run in arrived) else JobState.COMPLETED
    if expired:
        return JobState.EXPIRED
    if len(released) + len(open_) < quorum:
        return _blame(runs)
    return JobState.PENDING


def _blame(runs: Sequence[RunView]) -> JobState:
    ended = {run.state for run in runs}
    return next(job for state, job in _BLAME if state in ended)
