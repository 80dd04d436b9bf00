"""The state machines of a run and of a job."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.states import (
    JOB_TERMINAL,
    RUN_TERMINAL,
    RUN_TRANSITIONS,
    IllegalTransitionError,
    JobState,
    RunEvent,
    RunState,
    RunView,
    follow,
    job_state,
    next_run_state,
)

runs_states = st.sampled_from(RunState)
views = st.builds(RunView, runs_states, st.booleans(), st.booleans(), st.booleans())


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[RunView], int]:
    runs = draw(st.lists(views, min_size=1, max_size=6))
    return runs, draw(st.integers(1, len(runs)))


@given(st.lists(st.sampled_from(RunEvent), max_size=40))
def test_refused_events_change_nothing_and_ends_are_final(events: list[RunEvent]) -> None:
    state, accepted = RunState.OFFERED, []
    for event in events:
        if state in RUN_TERMINAL:
            with pytest.raises(IllegalTransitionError):
                next_run_state(state, event)
        try:
            state = next_run_state(state, event)
        except IllegalTransitionError:
            continue
        accepted.append(event)
    if state is RunState.RELEASED:
        assert accepted.index(RunEvent.ACCEPT if RunEvent.ACCEPT in accepted else RunEvent.APPROVE) < accepted.index(
            RunEvent.COLLECT
        )
        assert accepted[-1] is RunEvent.RELEASE
    if state is RunState.CANCELLED:
        assert accepted[-2:] == [RunEvent.CANCEL, RunEvent.CONFIRM_CANCELLED]


def reachable(start: RunState) -> set[RunState]:
    found, frontier = {start}, [start]
    while frontier:
        state = frontier.pop()
        for (source, _), target in RUN_TRANSITIONS.items():
            if source is state and target not in found:
                found.add(target)
                frontier.append(target)
    return found


def test_every_state_can_be_reached_and_every_run_can_end() -> None:
    assert reachable(RunState.OFFERED) == set(RunState)
    assert all(reachable(state) & RUN_TERMINAL for state in RunState)


def test_nothing_is_released_but_from_checking_or_after_waiting_for_a_person() -> None:
    sources = {state for (state, _), target in RUN_TRANSITIONS.items() if target is RunState.RELEASED}
    assert sources == {RunState.CHECKING, RunState.AWAITING_RELEASE}


def test_every_run_that_has_not_ended_can_be_cancelled_and_can_expire() -> None:
    for state in set(RunState) - RUN_TERMINAL:
        assert next_run_state(state, RunEvent.EXPIRE) is RunState.EXPIRED
        if state is not RunState.CANCELLING:
            assert next_run_state(state, RunEvent.CANCEL) is RunState.CANCELLING


@given(runs_states, st.lists(runs_states, max_size=10))
def test_a_report_told_twice_is_told_once_and_an_end_stays(known: RunState, reports: list[RunState]) -> None:
    for reported in reports:
        before, known = known, follow(known, reported)
        assert follow(known, reported) is known
        if before in RUN_TERMINAL:
            assert known is before
        if before is RunState.CANCELLING:
            assert known is RunState.CANCELLING or known in RUN_TERMINAL


@given(jobs(), st.booleans(), st.booleans())
def test_every_job_has_a_state_that_its_runs_account_for(
    job: tuple[list[RunView], int], cancelled: bool, expired: bool
) -> None:
    runs, quorum = job
    state = job_state(runs, quorum=quorum, cancelled=cancelled, expired=expired)
    arrived = [run for run in runs if run.state is RunState.RELEASED and run.stored]
    if state in (JobState.COMPLETED, JobState.WITHHELD) and len(arrived) >= quorum:
        assert (state is JobState.COMPLETED) == any(not run.empty for run in arrived)
    if state is JobState.COMPLETED:
        assert len(arrived) >= quorum
        assert not cancelled
    if cancelled:
        assert state in (JobState.CANCELLING, JobState.CANCELLED)
    if expired:
        assert state in JOB_TERMINAL
    if all(run.state in RUN_TERMINAL and run.stored for run in runs):
        assert state in JOB_TERMINAL
    if state is JobState.PENDING:
        assert any(run.state not in RUN_TERMINAL or not run.stored for run in runs)


@given(jobs(), st.booleans(), st.booleans())
def test_a_jobs_state_does_not_depend_on_the_order_of_its_runs(
    job: tuple[list[RunView], int], cancelled: bool, expired: bool
) -> None:
    runs, quorum = job
    state = job_state(runs, quorum=quorum, cancelled=cancelled, expired=expired)
    assert state is job_state(runs[::-1], quorum=quorum, cancelled=cancelled, expired=expired)


def waiting_state(*runs: RunView, quorum: int, expired: bool = False) -> JobState:
    return job_state(runs, quorum=quorum, cancelled=False, expired=expired)


RELEASED = RunView(RunState.RELEASED)


def test_with_its_quorum_met_a_job_waits_for_who_works_but_not_for_who_is_gone_or_for_a_person() -> None:
    working = RunView(RunState.RUNNING)
    gone = RunView(RunState.RUNNING, reachable=False)
    person = RunView(RunState.AWAITING_RELEASE)
    assert waiting_state(RELEASED, working, quorum=1) is JobState.PENDING
    assert waiting_state(RELEASED, gone, person, quorum=1) is JobState.COMPLETED
    assert waiting_state(RELEASED, working, quorum=1, expired=True) is JobState.COMPLETED


def test_a_job_waits_for_a_summary_that_is_on_its_way() -> None:
    coming = RunView(RunState.RELEASED, stored=False)
    assert waiting_state(RELEASED, coming, quorum=1) is JobState.PENDING
    assert waiting_state(coming, quorum=1, expired=True) is JobState.EXPIRED


def test_a_quorum_out_of_reach_ends_the_job_at_once_with_its_first_cause() -> None:
    running = RunView(RunState.RUNNING)
    for state, end in (
        (RunState.FAILED, JobState.FAILED),
        (RunState.DECLINED, JobState.DECLINED),
        (RunState.WITHHELD, JobState.WITHHELD),
        (RunState.EXPIRED, JobState.EXPIRED),
        (RunState.CANCELLED, JobState.CANCELLED),
    ):
        assert waiting_state(RunView(state), running, quorum=2) is end
    assert waiting_state(RunView(RunState.WITHHELD), RunView(RunState.FAILED), quorum=1) is JobState.FAILED


def test_a_job_to_which_no_node_may_say_anything_is_withheld() -> None:
    empty = RunView(RunState.RELEASED, empty=True)
    assert waiting_state(empty, empty, quorum=2) is JobState.WITHHELD
    assert waiting_state(empty, RELEASED, quorum=2) is JobState.COMPLETED


def test_the_wire_knows_every_state() -> None:
    from hansa.v1 import types_pb2

    for wire, states in ((types_pb2.Run.State, RunState), (types_pb2.Job.State, JobState)):
        assert set(wire.keys()) == {"STATE_UNSPECIFIED", *states}


def test_the_table_has_no_state_that_leads_to_itself() -> None:
    assert not [pair for pair, target in RUN_TRANSITIONS.items() if pair[0] is target]
    assert len(set(itertools.chain(RUN_TRANSITIONS))) == len(RUN_TRANSITIONS)
