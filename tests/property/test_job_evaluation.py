"""What holds of every job, whatever its nodes report and in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.evaluation import evaluate, is_reachable, may_end_a_job
from coordinator.domain.explanation import explain
from coordinator.domain.frames import RunReported
from coordinator.domain.records import Contact, JobRecord, RunRecord
from coordinator.domain.reports import run_change
from hansa.contract.errors import RunReason
from hansa.contract.limits import SESSION_SILENCE
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, JobState, RunState

START = datetime(2026, 5, 1, tzinfo=UTC)
DEADLINE = START + timedelta(hours=1)
CONNECTED = Contact(connected=True, since=START)


def run(number: int, state: RunState = RunState.OFFERED, **more: bool) -> RunRecord:
    return RunRecord(
        run_id=f"{number:032x}",
        node=f"N{number}",
        dataset="d",
        state=state,
        contact=CONNECTED,
        updated_at=START,
        **more,  # type: ignore[arg-type]
    )


def job(*runs: RunRecord, quorum: int, state: JobState = JobState.PENDING, cancelled: bool = False) -> JobRecord:
    return JobRecord(
        job_id="j",
        submitter="ada",
        analysis_name="a",
        analysis_version="1.0",
        analysis_digest="d",
        state=state,
        quorum=quorum,
        submitted_at=START,
        not_after=DEADLINE,
        runs=runs,
        cancel_requested=cancelled,
    )


@st.composite
def jobs(draw: st.DrawFn) -> JobRecord:
    count = draw(st.integers(1, 5))
    runs = [
        replace(
            run(n, draw(st.sampled_from(RunState)), stored=draw(st.booleans()), empty=draw(st.booleans())),
            contact=Contact(draw(st.booleans()), draw(st.none() | st.just(START))),
        )
        for n in range(count)
    ]
    return job(*runs, quorum=draw(st.integers(1, count)), cancelled=draw(st.booleans()))


moments = st.sampled_from([START, START + SESSION_SILENCE, DEADLINE - timedelta(seconds=1), DEADLINE])


def settled(before: JobRecord, now: datetime) -> JobRecord:
    """Return the job after an evaluation, as the store writes it."""
    verdict = evaluate(before, now)
    moves = dict(verdict.moves)
    runs = tuple(replace(r, state=moves.get(r.run_id, r.state)) for r in before.runs)
    return replace(before, state=verdict.state, runs=runs)


@given(jobs(), moments)
def test_an_ended_job_stays_as_it_ended_and_nothing_follows(before: JobRecord, now: datetime) -> None:
    after = settled(before, now)
    if after.state in JOB_TERMINAL:
        again = evaluate(after, now + timedelta(days=1))
        assert (again.state, again.moves, again.cancels) == (after.state, (), ())


@given(jobs(), moments)
def test_a_job_is_completed_only_with_its_quorum_of_stored_summaries(before: JobRecord, now: datetime) -> None:
    after = settled(before, now)
    arrived = [r for r in before.runs if r.state is RunState.RELEASED and r.stored]
    if after.state is JobState.COMPLETED:
        assert len(arrived) >= before.quorum
        assert not before.cancel_requested
        assert any(not r.empty for r in arrived)


@given(jobs())
def test_after_the_deadline_every_job_has_ended_and_no_run_is_open(before: JobRecord) -> None:
    after = settled(before, DEADLINE)
    assert after.state in JOB_TERMINAL
    assert all(r.state in RUN_TERMINAL for r in after.runs)


@given(jobs(), moments)
def test_an_ended_job_leaves_no_node_at_work_unasked(before: JobRecord, now: datetime) -> None:
    verdict = evaluate(before, now)
    told = {r.run_id for r in verdict.cancels}
    for r in before.runs:
        if verdict.state is JobState.PENDING or r.state in RUN_TERMINAL:
            assert r.run_id not in told
        else:
            assert (r.run_id in told) == (r.state is not RunState.CANCELLING), "told once, and everybody"


@given(jobs(), moments)
def test_an_evaluation_repeated_changes_nothing(before: JobRecord, now: datetime) -> None:
    after = settled(before, now)
    assert settled(after, now) == after
    assert evaluate(after, now).cancels == ()


@given(jobs(), moments, st.sampled_from([s for s in RunState if not may_end_a_job(s)]), st.data())
def test_a_run_that_goes_on_working_never_ends_its_job(
    before: JobRecord, now: datetime, working: RunState, data: st.DataObject
) -> None:
    waiting = settled(before, now)
    open_ = [n for n, r in enumerate(waiting.runs) if r.state not in RUN_TERMINAL | {RunState.CANCELLING}]
    if waiting.state in JOB_TERMINAL or not open_:
        return
    number = data.draw(st.sampled_from(open_))
    runs = list(waiting.runs)
    runs[number] = replace(runs[number], state=working)
    assert evaluate(replace(waiting, runs=tuple(runs)), now).state is waiting.state


@given(jobs(), moments)
def test_a_cancelled_job_ends_only_as_cancelled(before: JobRecord, now: datetime) -> None:
    after = settled(replace(before, cancel_requested=True), now)
    assert after.state in {JobState.CANCELLING, JobState.CANCELLED}
    if now < DEADLINE and after.state is JobState.CANCELLED:
        assert all(r.state in RUN_TERMINAL for r in before.runs)


@given(jobs(), moments)
def test_a_job_can_always_be_explained(before: JobRecord, now: datetime) -> None:
    after = settled(before, now)
    text = explain(after, now)
    assert text.isprintable()
    if after.state in JOB_TERMINAL or any(r.state not in RUN_TERMINAL for r in after.runs):
        assert text


@given(st.booleans(), st.none() | st.integers(-3600, 3600), st.integers(0, 3600))
def test_a_node_is_unreachable_only_after_the_silence(connected: bool, ago: int | None, later: int) -> None:
    since = None if ago is None else START - timedelta(seconds=ago)
    contact = Contact(connected, since)
    if connected:
        assert is_reachable(contact, START)
    if since is not None and START - since < SESSION_SILENCE:
        assert is_reachable(contact, START)
    if not connected and is_reachable(contact, START + timedelta(seconds=later)):
        assert is_reachable(contact, START), "time alone brings nobody back"


reports = st.builds(
    RunReported,
    run_id=st.just("r"),
    attempt=st.sampled_from([1, 1, 1, 2]),
    execution=st.integers(0, 3),
    state=st.sampled_from(RunState),
    reason=st.sampled_from([*RunReason, "", "sample HG00096", "withheld"]),
    incident=st.sampled_from(["", "FI-0042", "a/b", "x" * 40]),
)


@dataclass
class Follower:
    """The coordinator's view of one run while reports come in."""

    known: RunRecord
    seen: list[RunRecord] = field(default_factory=list)

    def take(self, report: RunReported) -> None:
        change = run_change(self.known, report)
        if change is not None:
            self.known = replace(
                self.known,
                state=change.state,
                execution=change.execution,
                reason=change.reason,
                incident=change.incident,
            )
            self.seen.append(self.known)


@given(st.lists(reports, max_size=30), st.booleans())
def test_reports_in_any_order_keep_ends_wishes_and_enumerations(told: list[RunReported], cancelling: bool) -> None:
    start = run(0, RunState.CANCELLING if cancelling else RunState.OFFERED)
    follower = Follower(start)
    for report in told:
        before = follower.known
        follower.take(report)
        after = follower.known
        assert after.execution >= before.execution
        if before.state in RUN_TERMINAL:
            assert after == before
        if before.state is RunState.CANCELLING:
            assert after.state is RunState.CANCELLING or after.state in RUN_TERMINAL
        if report.attempt != 1:
            assert after == before
    for known in follower.seen:
        assert known.reason in {"", *RunReason}
        assert known.incident in {"", "FI-0042"}


@given(st.permutations(range(3)), st.permutations(range(3)), st.data())
def test_the_end_does_not_depend_on_the_order_of_releases_and_uploads(
    releases: list[int], uploads: list[int], data: st.DataObject
) -> None:
    current = job(*(run(n) for n in range(3)), quorum=3)
    todo = {"release": list(releases), "upload": list(uploads)}
    while todo["release"] or todo["upload"]:
        assert current.state is JobState.PENDING
        kind = data.draw(st.sampled_from([k for k, left in todo.items() if left]))
        number = todo[kind].pop()
        runs = list(current.runs)
        change: dict[str, object] = {"state": RunState.RELEASED} if kind == "release" else {"stored": True}
        runs[number] = replace(runs[number], **change)  # type: ignore[arg-type]
        current = settled(replace(current, runs=tuple(runs)), START)
    assert current.state is JobState.COMPLETED
