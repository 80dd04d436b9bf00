"""What the simulated coordinator's transactions make of jobs, runs and releases, decided by the production rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from coordinator.domain.frames import Cancel, JobReported, Offer, RunReported, SummaryReleased
from coordinator.domain.records import Contact, JobRecord, RunRecord
from hansa.contract.attach import NodeSeen
from hansa.contract.delivery import Released, Repeat
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.outbox import Head
from hansa.contract.states import JOB_TERMINAL, JobState, RunState
from tests.simulation.checker import Checker
from tests.simulation.records import CoordinatorState, Member, Question, digest_of, pack, question_of, subject_of
from tests.simulation.world import Store, World

_AWAY = Contact(connected=False, since=None)


class CoordinatorJobs:
    """The store and the parts of transactions that change jobs and runs in it."""

    def __init__(self, world: World, nodes: list[str], checker: Checker) -> None:
        """Begin with a store that knows ``nodes`` and nothing else."""
        members = {name: Member(NodeSeen(uuid="", generation=0, event_cursor=Head())) for name in nodes}
        self.world, self.rules, self.checker = world, world.rules, checker
        self.store = Store(world, CoordinatorState(members))
        self.offset = timedelta()

    @property
    def now(self) -> datetime:
        """The time that the coordinator's clock shows."""
        return self.world.now + self.offset

    def _quarantine(self, state: CoordinatorState, node: str, fault: str) -> str:
        state.members[node].quarantined = fault
        self.checker.quarantined(node, fault)
        return fault

    # --- what nodes tell -----------------------------------------------------------------

    def _effect(self, state: CoordinatorState, node: str, effect: Any) -> None:
        if isinstance(effect, JobReported):
            self._recall(state, effect.job)
            return
        run = state.runs.get(effect.run_id)
        if run is None:
            if state.generation == 1:
                raise HansaError(Reason.PROTOCOL_VIOLATION)
            return
        if isinstance(effect, SummaryReleased):
            self._announce(state, run, effect)
        else:
            self._follow(state, run, effect)
        self._settle(state, state.job_of[run.run_id])

    def _follow(self, state: CoordinatorState, run: RunRecord, report: RunReported) -> None:
        known = replace(run, contact=_AWAY)
        change = self.rules.run_change(known, report)
        if change is None:
            return
        if change.state is RunState.RELEASED and run.run_id not in state.statements:
            if state.generation > 1:
                return
            raise HansaError(Reason.STATEMENT_INVALID, log="the node says released, and has signed nothing")
        self._move(state, run, change.state, change.execution)

    def _move(self, state: CoordinatorState, run: RunRecord, to: RunState, execution: int) -> None:
        self.checker.coordinator_moved(run, to)
        state.runs[run.run_id] = replace(run, state=to, execution=execution, updated_at=self.now)

    def _announce(self, state: CoordinatorState, run: RunRecord, told: SummaryReleased) -> None:
        if told.attempt != run.attempt or told.statement is None:
            return
        known = state.statements.get(run.run_id)
        before = Released(
            "" if known is None else digest_of(known.payload).hex(),
            state.stored.get(run.run_id) or state.announced.get(run.run_id) or b"",
        )
        now = Released(digest_of(told.statement.payload).hex(), subject_of(told.statement))
        try:
            self.rules.check_one_release(before, now)
        except HansaError:
            self._quarantine(state, run.node, "a release that does not hold")
            raise
        state.statements[run.run_id] = told.statement
        state.announced[run.run_id] = now.subject
        self.checker.accepted(run, told.statement)

    def _collect(self, state: CoordinatorState, node: str, run_id: str, content: bytes) -> str | None:
        run, digest = state.runs.get(run_id), digest_of(content)
        if run is None or state.members[node].quarantined:
            return None
        known = Released("", state.stored.get(run_id) or state.announced.get(run_id) or b"")
        try:
            self.rules.check_one_release(known, Released("", digest))
        except HansaError:
            self._quarantine(state, node, "an upload that was not announced")
            return None
        state.stored[run_id] = digest
        self._settle(state, state.job_of[run_id])
        return "OK"

    # --- jobs ----------------------------------------------------------------------------

    def _submit(self, state: CoordinatorState, signed: Signed) -> str:
        question, digest = question_of(signed), digest_of(signed.payload)
        try:
            again = self.rules.repeat(state.digests.get(question.job_id), digest, field="job_id")
        except HansaError as error:
            return error.reason.value
        if again is Repeat.AGAIN:
            return "OK"
        if question.not_after <= self.now or any(state.members[node].quarantined for node in question.nodes):
            return "REFUSED"
        self._admit(state, question, signed)
        return "OK"

    def _admit(self, state: CoordinatorState, question: Question, signed: Signed) -> None:
        self.checker.admitted(question, known=question.job_id in state.digests)
        state.digests[question.job_id] = digest_of(signed.payload)
        state.signed[question.job_id] = signed
        runs = []
        for node in question.nodes:
            run = RunRecord(
                run_id=question.run_id(node),
                node=node,
                dataset="d",
                state=RunState.OFFERED,
                contact=_AWAY,
                updated_at=self.now,
            )
            runs.append(run)
            state.runs[run.run_id], state.job_of[run.run_id] = run, question.job_id
            offer = Offer(run_id=run.run_id, job_id=question.job_id, round=1, attempt=1, job=signed)
            state.members[node].commands.append(pack(offer), self.world.now)
        state.jobs[question.job_id] = JobRecord(
            job_id=question.job_id,
            submitter="ada",
            analysis_name="a",
            analysis_version="1.0",
            analysis_digest="d",
            state=JobState.PENDING,
            quorum=question.quorum,
            submitted_at=self.now,
            not_after=question.not_after,
            runs=tuple(runs),
        )

    def _recall(self, state: CoordinatorState, signed: Signed | None) -> None:
        if state.generation == 1:
            raise HansaError(Reason.PROTOCOL_VIOLATION)
        if signed is None:
            return
        question = question_of(signed)
        if question.job_id not in state.digests and question.not_after > self.now:
            self._admit(state, question, signed)

    def _cancel(self, state: CoordinatorState, job_id: str) -> str:
        job = state.jobs.get(job_id)
        if job is None:
            return "UNKNOWN"
        if job.state not in JOB_TERMINAL:
            state.jobs[job_id] = replace(job, cancel_requested=True)
            self._settle(state, job_id)
        return "OK"

    def _settle(self, state: CoordinatorState, job_id: str) -> None:
        job = self._record(state, job_id)
        verdict = self.rules.evaluate(job, self.now)
        if verdict.state is job.state and not verdict.moves:
            return
        for run_id, to in verdict.moves:
            self._move(state, state.runs[run_id], to, state.runs[run_id].execution)
        for run in verdict.cancels:
            cancel = Cancel(run.run_id, run.attempt)
            state.members[run.node].commands.append(pack(cancel), self.world.now)
        self.checker.job_moved(job, verdict.state)
        state.jobs[job_id] = replace(state.jobs[job_id], state=verdict.state)

    def _record(self, state: CoordinatorState, job_id: str) -> JobRecord:
        job = state.jobs[job_id]
        runs = []
        for run in job.runs:
            member = state.members[run.node]
            has_both = run.run_id in state.stored and run.run_id in state.statements
            runs.append(
                replace(state.runs[run.run_id], contact=Contact(member.connected, member.since), stored=has_both)
            )
        return replace(job, runs=tuple(runs))
