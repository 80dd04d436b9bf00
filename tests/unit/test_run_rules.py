"""The rules of a run at its node: what ends a lease, what proves an end, who may claim."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.errors import RunReason
from hansa.contract.states import RUN_TERMINAL, RUN_TRANSITIONS, RunEvent, RunState
from node_agent.run_rules import (
    BEAT_PATIENCE,
    LOOK_PATIENCE,
    MAX_EXECUTIONS,
    MESSAGE_PATIENCE,
    STARTED,
    Due,
    RunFacts,
    Seen,
    Share,
    WorkerSign,
    due,
    is_current,
    is_message_lost,
    lost_messages,
    may_claim,
    next_to_start,
    repeats_claim,
    when_cancelled,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMES = st.timedeltas(timedelta(days=-2), timedelta(days=2)).map(lambda ago: NOW - ago)
RUNS = st.builds(
    RunFacts,
    run_id=st.just("0" * 32),
    attempt=st.integers(1, 3),
    execution=st.integers(1, MAX_EXECUTIONS),
    state=st.sampled_from(RunState),
    not_after=TIMES,
    created_at=TIMES,
    enqueued_at=st.none() | TIMES,
    beat_at=st.none() | TIMES,
    worker=st.sampled_from(["", "w1", "w2"]),
    claim=st.sampled_from(["", "c1", "c2"]),
)
SEEN = st.builds(Seen, worker=st.sampled_from(WorkerSign), empty=st.booleans())


def running(state: RunState = RunState.RUNNING, *, silent: bool = False, execution: int = 1) -> RunFacts:
    return RunFacts(
        run_id="0" * 32,
        attempt=1,
        execution=execution,
        state=state,
        not_after=NOW + timedelta(hours=1),
        created_at=NOW,
        beat_at=NOW - BEAT_PATIENCE - timedelta(seconds=1) if silent else NOW,
        worker="w1",
        claim="c1",
    )


@given(RUNS, SEEN)
def test_whatever_is_due_the_table_of_states_allows_it(run: RunFacts, seen: Seen) -> None:
    what = due(run, NOW, seen)
    assert what is None or (run.state, what.event) in RUN_TRANSITIONS


@given(RUNS, SEEN)
def test_a_run_is_confirmed_cancelled_only_with_proof_that_nothing_runs_and_nobody_can_start_it(
    run: RunFacts, seen: Seen
) -> None:
    what = due(run, NOW, seen)
    if what is not None and what.event is RunEvent.CONFIRM_CANCELLED:
        assert seen.empty
        assert seen.worker is not WorkerSign.ALIVE


@given(RUNS, SEEN)
def test_no_lease_ends_while_something_of_the_execution_still_runs(run: RunFacts, seen: Seen) -> None:
    what = due(run, NOW, seen)
    if what is not None and what.event in (RunEvent.LOSE_LEASE, RunEvent.FAIL):
        assert seen.empty


def test_the_death_of_a_worker_ends_its_lease_without_waiting_for_silence() -> None:
    assert due(running(), NOW, Seen(worker=WorkerSign.DEAD)) == Due(RunEvent.LOSE_LEASE)
    assert due(running(), NOW, Seen(worker=WorkerSign.ALIVE)) is None


def test_a_frozen_worker_loses_its_run_but_does_not_make_a_cancelled_one_look_ended() -> None:
    frozen = Seen(worker=WorkerSign.ALIVE)
    assert due(running(silent=True), NOW, frozen) == Due(RunEvent.LOSE_LEASE)
    assert due(running(RunState.CANCELLING, silent=True), NOW, frozen) is None


def test_the_last_lost_execution_costs_the_run() -> None:
    last = running(execution=MAX_EXECUTIONS)
    assert due(last, NOW, Seen(worker=WorkerSign.DEAD)) == Due(RunEvent.FAIL, RunReason.RUN_LOST)


@pytest.mark.parametrize(
    ("enqueued_at", "lost"),
    [
        (None, True),
        (NOW, False),
        (NOW - MESSAGE_PATIENCE - timedelta(seconds=1), True),
        # The clock was put back since.
        (NOW + timedelta(days=1), True),
    ],
)
def test_a_message_is_sent_again_whichever_way_the_clock_has_jumped(enqueued_at: datetime | None, lost: bool) -> None:
    assert is_message_lost(staging(enqueued_at), NOW) is lost


def staging(sent: datetime | None, run_id: str = "0" * 32) -> RunFacts:
    return RunFacts(
        run_id=run_id,
        attempt=1,
        execution=1,
        state=RunState.STAGING,
        not_after=NOW + timedelta(days=2),
        created_at=NOW,
        enqueued_at=sent,
    )


@given(st.lists(st.none() | TIMES, max_size=8), st.none() | st.integers(0, 20))
def test_the_broker_never_holds_more_than_two_messages_for_a_run(
    sent: list[datetime | None], depth: int | None
) -> None:
    runs = [staging(at, f"{number:032x}") for number, at in enumerate(sent)]
    again = lost_messages(runs, depth, NOW)
    if depth is not None and None not in sent:
        assert not again or depth + len(again) < 2 * len(runs)
    assert {run.run_id for run in runs if run.enqueued_at is None} <= set(again)


def test_all_of_a_lost_brokers_messages_are_sent_again_within_seconds() -> None:
    runs = [staging(NOW - LOOK_PATIENCE - timedelta(seconds=1), f"{number:032x}") for number in range(4)]
    assert lost_messages(runs, 0, NOW) == [run.run_id for run in runs]
    assert lost_messages(runs, 4, NOW) == []


def queued(project: str, minute: int) -> RunFacts:
    return RunFacts(
        run_id=f"{project}-{minute}",
        attempt=1,
        execution=0,
        state=RunState.QUEUED,
        not_after=NOW + timedelta(days=2),
        created_at=NOW + timedelta(minutes=minute),
        project=project,
    )


QUEUED = st.lists(
    st.builds(queued, st.sampled_from("abc"), st.integers(0, 50)), unique_by=lambda run: run.run_id, max_size=30
)
SHARES = st.dictionaries(st.sampled_from("abc"), st.builds(Share, st.integers(0, 5), st.none() | TIMES))


@given(QUEUED, SHARES, st.integers(-2, 10))
def test_projects_take_turns_and_within_one_the_oldest_run_is_first(
    waiting: list[RunFacts], shares: dict[str, Share], room: int
) -> None:
    chosen = next_to_start(waiting, room, shares)
    assert len(chosen) == len(set(chosen)) == min(max(room, 0), len(waiting))
    for project in "abc":
        own = [run.run_id for run in sorted(waiting, key=lambda run: run.created_at) if run.project == project]
        assert [run_id for run_id in own if run_id in chosen] == own[: sum(run_id in own for run_id in chosen)]
    before = {project: shares.get(project, Share()).active for project in "abc"}
    after = {p: before[p] + sum(run_id.startswith(p) for run_id in chosen) for p in "abc"}
    still_waiting = {run.project for run in waiting if run.run_id not in chosen}
    # Whoever was given a place had no more than any project that still waits.
    gainers = [p for p in "abc" if after[p] > before[p]]
    assert all(after[p] - 1 <= after[other] for p in gainers for other in still_waiting)


@given(st.integers(1, 4), st.integers(1, 12), st.data())
def test_a_flood_makes_another_projects_job_wait_for_no_more_than_one_job(slots: int, flood: int, data: Any) -> None:
    """Jobs last one unit from when they start; the other project's job comes at any moment of a flood."""
    comes = data.draw(st.integers(0, flood * 10))
    waiting = [queued("a", minute) for minute in range(flood * slots)]
    ends: list[int] = []
    served: dict[str, datetime] = {}
    for tick in range(flood * 10 + 30):
        if tick == comes:
            waiting.append(queued("b", 10_000))
        ends = [end for end in ends if end > tick]
        shares = {"a": Share(len(ends), served.get("a"))}
        for run_id in next_to_start(waiting, slots - len(ends), shares):
            waiting = [run for run in waiting if run.run_id != run_id]
            served[run_id[0]] = NOW + timedelta(seconds=tick)
            ends.append(tick + 10)
            if run_id == "b-10000":
                assert tick - comes <= 10
                return
    raise AssertionError("never started")


@given(RUNS, st.sampled_from(["", "w1", "w2"]), st.sampled_from(["", "c1", "c2"]))
def test_a_run_at_work_is_given_out_again_only_for_the_very_claim_that_holds_it(
    run: RunFacts, worker: str, token: str
) -> None:
    if repeats_claim(run, worker, token):
        assert token != ""
        assert (worker, token) == (run.worker, run.claim)
        assert run.state in STARTED
    assert not (may_claim(run) and repeats_claim(run, worker, token))


@given(RUNS, st.integers(1, MAX_EXECUTIONS))
def test_only_the_execution_at_work_may_beat_or_commit(run: RunFacts, execution: int) -> None:
    assert is_current(run, execution) == (run.execution == execution and run.state in STARTED)


@given(RUNS, st.integers(1, 3))
def test_a_wish_to_cancel_ends_only_what_runs_nowhere(run: RunFacts, attempt: int) -> None:
    state = run.state
    for what in when_cancelled(run, attempt):
        state = RUN_TRANSITIONS[state, what.event]
    if state is RunState.CANCELLED and run.state is not RunState.CANCELLED:
        assert run.state not in STARTED
    if run.state in RUN_TERMINAL:
        assert state is run.state
