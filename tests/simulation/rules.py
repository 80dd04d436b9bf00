"""The rules that the simulated world runs by: the production functions, each in a slot of its own.

``Rules()`` is what the daemons run. A mutation of the simulator's checks puts
something weaker into one slot. Slots that are true or false stand for an order
that the daemons keep in their own code (commit, then acknowledge): the
simulated processes keep it too unless the slot says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from coordinator.domain.evaluation import Evaluation, evaluate
from coordinator.domain.frames import RunReported
from coordinator.domain.records import JobRecord, RunRecord
from coordinator.domain.reports import RunChange, run_change
from hansa.contract import attach, delivery, retention
from hansa.contract.attach import CoordinatorSeen, CoordinatorTold, Course, Proof
from hansa.contract.delivery import Receiver, Released, Repeat, Sender
from hansa.contract.outbox import Head
from hansa.contract.states import RunEvent, RunState, adopt, next_run_state
from node_agent import run_rules
from node_agent.run_rules import Due, RunFacts


@dataclass(frozen=True)
class Rules:
    """What is decided by whom; the defaults are production."""

    # The two ends of an outbox.
    sender: type[Sender] = Sender
    receiver: type[Receiver] = Receiver
    prune_below: Callable[..., int] = retention.prune_below
    repeat: Callable[..., Repeat] = delivery.repeat
    check_one_release: Callable[[Released, Released], Repeat] = delivery.check_one_release
    # How two stores meet.
    next_epoch: Callable[[int, int], int] = attach.next_epoch
    check_epoch: Callable[[int, int], None] = attach.check_epoch
    check_standing: Callable[[int, int], None] = attach.check_standing
    store_fault: Callable[..., str] = attach.store_fault
    course: Callable[[CoordinatorSeen, CoordinatorTold], Course] = attach.course
    begins_anew: Callable[..., bool] = attach.begins_anew
    command_cursor: Callable[..., Head] = attach.command_cursor
    node_lost_events: Callable[[Proof, Head], bool] = attach.node_lost_events
    node_lost_commands: Callable[[Proof, Head], bool] = attach.node_lost_commands
    coordinator_lost_commands: Callable[[Proof, Head, bytes], bool] = attach.coordinator_lost_commands
    # Runs and jobs.
    next_run_state: Callable[[RunState, RunEvent], RunState] = next_run_state
    adopt: Callable[[RunState, RunState], RunState] = adopt
    run_change: Callable[[RunRecord, RunReported], RunChange | None] = run_change
    evaluate: Callable[[JobRecord, datetime], Evaluation] = evaluate
    due: Callable[[RunFacts, datetime], Due | None] = run_rules.due
    is_message_lost: Callable[[RunFacts, datetime], bool] = run_rules.is_message_lost
    next_to_start: Callable[[Sequence[RunFacts], int], Sequence[str]] = run_rules.next_to_start
    may_claim: Callable[[RunFacts], bool] = run_rules.may_claim
    is_current: Callable[[RunFacts, int], bool] = run_rules.is_current
    when_cancelled: Callable[[RunFacts, int], Sequence[Due]] = run_rules.when_cancelled
    # Orders that the daemons keep.
    events_acked_after_commit: bool = True
    commands_acked_after_commit: bool = True
    stored_before_sent: bool = True
    sends_again_as_signed: bool = True
    tells_again: bool = True
    adopts: bool = True
    holds_until_reconciled: bool = True
    kills_before_confirming: bool = True
    upload_marked_after_answer: bool = True
    # How long an acknowledged entry stays; the daemons keep it for weeks.
    keep: timedelta = field(default=timedelta(seconds=120))


class AnyOrder(Receiver):
    """A receiver that asks nothing: the base of mutations."""

    def judge(self, seq: int, prev_hash: bytes) -> Any:
        """Apply whatever comes."""
        raise NotImplementedError
