"""What becomes of a run at its node, as pure rules: who may start, beat and commit, and what is due when.

No clock, no store, no broker: the scheduler and the workers' calls gather the
facts inside their transactions and do what is answered. The simulator asks the
same functions.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from hansa.contract.errors import RunReason
from hansa.contract.states import RUN_TERMINAL, RunEvent, RunState

MESSAGE_PATIENCE: Final = timedelta(seconds=10)
# So long a message may be on its way before it is worth asking the broker whether it has it.
LOOK_PATIENCE: Final = timedelta(seconds=2)
BEAT_PATIENCE: Final = timedelta(seconds=15)
MAX_EXECUTIONS: Final = 3

# A worker has it, and says so again and again.
STARTED: Final = frozenset({RunState.RUNNING, RunState.CANCELLING})
# Nothing of these runs anywhere, so that a wish to cancel is fulfilled at once: a run
# that waits in the airlock, or for its worker, runs nowhere.
_RUNS_NOWHERE: Final = frozenset(
    {
        RunState.ACCEPTED,
        RunState.AWAITING_APPROVAL,
        RunState.QUEUED,
        RunState.STAGING,
        RunState.AWAITING_RELEASE,
    }
)


@dataclass(frozen=True, slots=True)
class Share:
    """What a project has of the node: its runs at work, and when it was last given a place."""

    active: int = 0
    served_at: datetime | None = None


class WorkerSign(enum.Enum):
    """Whether a worker program lives, as far as the agent can tell."""

    ALIVE = "alive"
    DEAD = "dead"
    # It has left no card: then its silence is all that tells.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the agent has found of a running execution: its worker, and whether it is proven that nothing runs."""

    worker: WorkerSign = WorkerSign.UNKNOWN
    empty: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the rules have to know of a run.

    ``enqueued_at`` is when its message went to the broker, ``beat_at`` when its
    worker last gave a sign of life; None: never, in this execution. ``claim``
    is the token that its worker claimed it with.
    """

    run_id: str
    attempt: int
    execution: int
    state: RunState
    not_after: datetime
    created_at: datetime
    enqueued_at: datetime | None = None
    beat_at: datetime | None = None
    worker: str = ""
    claim: str = ""
    project: str = ""


@dataclass(frozen=True, slots=True)
class Due:
    """What has to happen to a run now, and the reason to give for it."""

    event: RunEvent
    reason: RunReason | None = None


def due(run: RunFacts, now: datetime, seen: Seen = Seen()) -> Due | None:
    """Return what time and the end of workers have done to ``run``; None if nothing.

    Past its deadline it ends. A worker that has died, or is silent for too long,
    costs an execution, the last one the run. A lease ends only once nothing of
    the execution runs any more. A run is cancelled only if its worker cannot start
    anything either, and silence does not tell that.
    """
    if run.state in RUN_TERMINAL:
        return None
    if run.not_after <= now:
        return Due(RunEvent.EXPIRE, RunReason.DEADLINE_PASSED)
    if not is_forsaken(run, now, seen.worker) or not seen.empty:
        return None
    if run.state is not RunState.CANCELLING:
        return lost(run)
    return None if seen.worker is WorkerSign.ALIVE else Due(RunEvent.CONFIRM_CANCELLED, RunReason.CANCELLED)


def is_forsaken(run: RunFacts, now: datetime, worker: WorkerSign) -> bool:
    """Say whether nobody looks after the running execution: what is left of it is to be killed."""
    return run.state in STARTED and (worker is WorkerSign.DEAD or is_silent(run, now))


def lost(run: RunFacts, reason: RunReason = RunReason.RUN_LOST) -> Due:
    """Return what the loss of the running execution costs; ``reason`` if it costs the run."""
    if run.execution >= MAX_EXECUTIONS:
        return Due(RunEvent.FAIL, reason)
    return Due(RunEvent.LOSE_LEASE)


def is_silent(run: RunFacts, now: datetime) -> bool:
    """Say whether ``run`` has a worker that was not heard for too long."""
    return run.state in STARTED and run.beat_at is not None and run.beat_at < now - BEAT_PATIENCE


def is_message_lost(run: RunFacts, now: datetime, patience: timedelta = MESSAGE_PATIENCE) -> bool:
    """Say whether a message that was sent about ``run`` should have been taken by now, and may be lost."""
    if run.state is not RunState.STAGING:
        return False
    # A message of the future was sent before the clock was put back.
    return run.enqueued_at is None or not now - patience <= run.enqueued_at <= now


def lost_messages(staging: Sequence[RunFacts], depth: int | None, now: datetime) -> Sequence[str]:
    """Return the runs of which the broker has to be told again; one message too many does no harm.

    As long as it holds as many messages as runs wait, none is lost and none is
    sent, however long the workers take. So it never holds more than two for each.

    Args:
        staging: the runs whose message was sent.
        depth: how many messages the broker holds; None if it does not tell.
        now: aware time.
    """
    if depth is None:
        return [run.run_id for run in staging if is_message_lost(run, now)]
    if depth >= len(staging):
        return [run.run_id for run in staging if run.enqueued_at is None]
    return [run.run_id for run in staging if is_message_lost(run, now, LOOK_PATIENCE)]


def next_to_start(queued: Sequence[RunFacts], room: int, shares: Mapping[str, Share] | None = None) -> Sequence[str]:
    """Return the ids of the runs that start next, at most ``room``: projects take turns.

    The next place is the project's that has the fewest runs at work; among
    equals that was given a place the longest time ago; then the one's whose
    oldest run waits longest. So nobody's flood makes another project wait for
    more than the next free place.

    Args:
        queued: runs that wait; of each project at least its ``room`` oldest.
        room: how many may start.
        shares: what the projects have had; one that is not in it has had nothing.
    """
    waiting: dict[str, list[RunFacts]] = {}
    for run in sorted(queued, key=_age, reverse=True):
        waiting.setdefault(run.project, []).append(run)
    had = {name: (shares or {}).get(name, Share()) for name in waiting}
    places = {name: share.active for name, share in had.items()}
    # Who is given a place now goes behind everybody.
    turns = {name: (0, share.served_at.timestamp() if share.served_at else 0.0) for name, share in had.items()}
    chosen: list[str] = []
    while waiting and len(chosen) < room:
        project = min(waiting, key=lambda name: (places[name], turns[name], _age(waiting[name][-1])))
        places[project] += 1
        turns[project] = (1, float(len(chosen)))
        chosen.append(waiting[project].pop().run_id)
        if not waiting[project]:
            del waiting[project]
    return chosen


def _age(run: RunFacts) -> tuple[datetime, str]:
    return run.created_at, run.run_id


def may_claim(run: RunFacts) -> bool:
    """Say whether a worker may take ``run``, whatever message told it to."""
    return run.state is RunState.STAGING


def repeats_claim(run: RunFacts, worker: str, token: str) -> bool:
    """Say whether ``run`` was given to ``worker`` for this very token, and the answer was lost on its way."""
    return run.state in STARTED and bool(token) and (run.worker, run.claim) == (worker, token)


def is_current(run: RunFacts, execution: int) -> bool:
    """Say whether ``execution`` may beat and commit: only the highest one of a run that is at work."""
    return run.execution == execution and run.state in STARTED


def when_cancelled(run: RunFacts, attempt: int) -> Sequence[Due]:
    """Return what a wish to cancel ``attempt`` of ``run`` leads to, in order.

    A repeat, another attempt, or a run that has ended: nothing. A run at work
    is cancelled only when its worker has confirmed it.
    """
    if run.attempt != attempt or run.state in RUN_TERMINAL or run.state is RunState.CANCELLING:
        return ()
    if run.state in _RUNS_NOWHERE:
        return Due(RunEvent.CANCEL), Due(RunEvent.CONFIRM_CANCELLED, RunReason.CANCELLED)
    return (Due(RunEvent.CANCEL),)
