"""The rules, each taken out once: what a careless change would leave in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from coordinator.domain import evaluation
from coordinator.domain.frames import RunReported
from coordinator.domain.records import JobRecord, RunRecord
from coordinator.domain.reports import RunChange
from hansa.contract import attach
from hansa.contract.attach import Course
from hansa.contract.delivery import Receiver, Repeat
from hansa.contract.outbox import Verdict
from hansa.contract.states import RUN_TERMINAL, RUN_TRANSITIONS, RunEvent, RunState, next_run_state
from node_agent import run_rules
from node_agent.run_rules import STARTED, Due, RunFacts
from tests.simulation.rules import Rules
from tests.simulation.world import Odds


class _Without(Receiver):
    """A receiver that takes what one rule would have stopped for an entry to apply."""

    blind_to: Verdict

    def judge(self, seq: int, prev_hash: bytes) -> Verdict:
        """Judge, but for one verdict."""
        verdict = super().judge(seq, prev_hash)
        return Verdict.APPLY if verdict is self.blind_to else verdict


class _NoDedupe(_Without):
    blind_to = Verdict.REPEAT


class _NoGapCheck(_Without):
    blind_to = Verdict.GAP


def _nothing(*_: Any) -> None:
    """Check nothing."""


def _first_or_again(_known: Any, _digest: Any, *, field: str) -> Repeat:
    return Repeat.NEW


def _same_id_is_the_same(known: Any, _digest: Any, *, field: str) -> Repeat:
    return Repeat.NEW


def _no_follow(known: RunRecord, report: RunReported) -> RunChange | None:
    return RunChange(report.state, report.execution, "", "")


def _shown_at_once(job: JobRecord, now: datetime) -> evaluation.Evaluation:
    """Show a run as cancelled as soon as somebody wishes it."""
    verdict = evaluation.evaluate(job, now)
    moves = tuple((run_id, RunState.CANCELLED if to is RunState.CANCELLING else to) for run_id, to in verdict.moves)
    return replace(verdict, moves=moves)


def _no_deadline(job: JobRecord, now: datetime) -> evaluation.Evaluation:
    return evaluation.evaluate(replace(job, not_after=now + timedelta(days=1)), now)


def _due_without_deadline(run: RunFacts, now: datetime) -> Due | None:
    return run_rules.due(replace(run, not_after=now + timedelta(days=1)), now)


def _any_started(run: RunFacts, _execution: int) -> bool:
    return run.state in STARTED


def _any_open(run: RunFacts) -> bool:
    return run.state in {RunState.STAGING, RunState.RUNNING}


def _confirmed_at_once(run: RunFacts, attempt: int) -> tuple[Due, ...]:
    found = tuple(run_rules.when_cancelled(run, attempt))
    return (*found, Due(RunEvent.CONFIRM_CANCELLED)) if len(found) == 1 else found


def _never_lost(*_: Any) -> bool:
    return False


def _no_fault(_seen: Any, *, uuid: str, generation: int) -> str:
    return ""


def _old_epochs(last: int, _generation: int) -> int:
    return last + 1


def _goes_on(seen: attach.CoordinatorSeen, told: attach.CoordinatorTold) -> Course:
    return Course.TELL_AGAIN if seen.uuid and told.generation > seen.generation else Course.CONTINUE


def _own_cursor(seen: attach.CoordinatorSeen, _told: attach.CoordinatorTold, *, restored: bool) -> Any:
    return seen.commands


def _keeps_own(own: RunState, _recorded: RunState) -> RunState:
    return own


def _any_transition(state: RunState, event: RunEvent) -> RunState:
    if state in RUN_TERMINAL:
        return next(to for (_, happened), to in RUN_TRANSITIONS.items() if happened is event)
    return next_run_state(state, event)


def _starts_again(state: RunState, event: RunEvent) -> RunState:
    return state if (state, event) == (RunState.RUNNING, RunEvent.START) else next_run_state(state, event)


def _prunes_anything(*, head: int, acked: int, old: int) -> int:
    return head


def _prunes_when_acked(*, head: int, acked: int, old: int) -> int:
    return acked


RULES_REMOVED: Mapping[str, Rules] = {
    "events are applied once": Rules(receiver=_NoDedupe),
    "no event is skipped": Rules(receiver=_NoGapCheck),
    "events are committed, then acknowledged": Rules(events_acked_after_commit=False),
    "commands are committed, then acknowledged": Rules(commands_acked_after_commit=False),
    "what is not acknowledged is not pruned": Rules(prune_below=_prunes_anything),
    "what was acknowledged is kept for a time": Rules(prune_below=_prunes_when_acked),
    "a release is sent again as it was signed": Rules(sends_again_as_signed=False),
    "the node proves its heads": Rules(node_lost_events=_never_lost, node_lost_commands=_never_lost),
    "a restored node is set apart": Rules(store_fault=_no_fault),
    "a frame is of its session's epoch": Rules(check_epoch=_nothing, check_standing=_nothing),
    "epochs outlive a restore": Rules(next_epoch=_old_epochs),
    "only the highest execution commits": Rules(is_current=_any_started),
    "a run is claimed once": Rules(may_claim=_any_open, next_run_state=_starts_again),
    "one id is one job": Rules(repeat=_first_or_again),
    "an end is final at the coordinator": Rules(run_change=_no_follow),
    "an end is final at the node": Rules(next_run_state=_any_transition, is_current=lambda run, number: True),
    "cancelled is shown when the node has confirmed it": Rules(evaluate=_shown_at_once),
    "the node confirms when nothing runs": Rules(when_cancelled=_confirmed_at_once),
    "processes are killed before a lost run is given up": Rules(kills_before_confirming=False),
    "a job ends at its deadline": Rules(evaluate=_no_deadline),
    "a run ends at its deadline": Rules(due=_due_without_deadline),
    "a restored node adopts what is recorded": Rules(adopts=False),
    "a restored node takes ends over": Rules(adopt=_keeps_own),
    "a restored node holds until it is reconciled": Rules(holds_until_reconciled=False),
    "a restored coordinator is told again": Rules(tells_again=False),
    "a restored coordinator's commands are taken from its base": Rules(command_cursor=_own_cursor),
    "a summary counts as sent when it was answered": Rules(upload_marked_after_answer=False),
}

_RESTORES = Odds(restore=0.02)
# What needs a rare fault to be missed is looked for where that fault is frequent.
ODDS: Mapping[str, Odds] = {
    "the node proves its heads": Odds(restore=0.01, by_hand=1.0),
    "a restored node holds until it is reconciled": _RESTORES,
    "a restored node is set apart": _RESTORES,
    "a restored coordinator is told again": _RESTORES,
}
