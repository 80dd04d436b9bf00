"""The simulated node's link: the agent lives and dies, attaches, tells its events and applies its commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from coordinator.domain.frames import (
    Cancel,
    CommandAck,
    CommandFrame,
    Event,
    EventAck,
    Fenced,
    HeadProof,
    Hello,
    JobReported,
    Offer,
    Reconcile,
    RecordedRun,
    RunReported,
    SummaryReleased,
    Welcome,
)
from hansa.contract.attach import CoordinatorSeen, CoordinatorTold, Course
from hansa.contract.errors import HansaError, Reason
from hansa.contract.limits import EVENT_WINDOW, PROTOCOL_VERSION
from hansa.contract.outbox import Verdict
from hansa.contract.states import RunEvent, RunState
from node_agent.run_rules import RunFacts
from tests.simulation.checker import Checker
from tests.simulation.coordinator_process import CoordinatorProcess
from tests.simulation.records import NodeState, Outbox, Outgoing, pack, question_of, statement_of, subject_of, unpack
from tests.simulation.wire import Stream
from tests.simulation.world import Crash, Store, World


class NodeLink:
    """An agent that attaches: a stream in memory, everything else in its store."""

    def __init__(self, world: World, name: str, coordinator: CoordinatorProcess, checker: Checker) -> None:
        """Begin with an empty store."""
        self.world, self.rules, self.checker, self.name = world, world.rules, checker, name
        self.coordinator = coordinator
        self.store = Store(world, NodeState(uuid=world.fresh(f"store-{name}")))
        self.up = True
        self.offset = timedelta()
        self.life = 0
        self.partitioned = False
        self.stream: Stream | None = None
        self.epoch = 0
        self.sender: Any = None

    @property
    def now(self) -> Any:
        """The time that the node's clock shows."""
        return self.world.now + self.offset

    # --- the process -------------------------------------------------------------------

    def guard(self, what: Callable[[], Any]) -> Any:
        """Do ``what`` if the agent is up; die if it says so."""
        if not self.up:
            return None
        try:
            return what()
        except Crash:
            self.die()
            return None

    def die(self, *, down: float | None = None) -> None:
        """Lose all memory; start again after a while. What workers do goes on."""
        if not self.up:
            return
        self.up = False
        self.life += 1
        if self.stream is not None:
            self.stream.close()
        self._forget_stream()
        self.world.after(self.world.random.uniform(0.5, 6.0) if down is None else down, self.start)

    def start(self) -> None:
        """Start the agent on its store."""
        self.up = True

    def _forget_stream(self) -> None:
        self.stream, self.sender, self.epoch = None, None, 0

    # --- streams -----------------------------------------------------------------------

    def dial(self) -> None:
        """Open a stream where there is none."""
        if self.stream is None and not self.partitioned and self.coordinator.up:
            self.stream = stream = Stream(self.world, self.name, (self, self.coordinator))
            stream.send(self.coordinator, self.hello(self.store.state))

            def give_up() -> None:
                if self.stream is stream and self.sender is None:
                    stream.close()

            self.world.after(10.0, give_up)

    def hello(self, state: NodeState) -> Hello:
        """Return the first frame of a stream."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            instance_id=f"{self.name}-{self.life}",
            store_uuid=state.uuid,
            generation=state.generation,
        )

    def ended(self, stream: Stream) -> None:
        """Forget a stream that is over."""
        if stream is self.stream:
            self._forget_stream()

    def receive(self, stream: Stream, frame: Any) -> None:
        """Take a frame; one of a stream that is over comes to the present one."""
        self.guard(lambda: self._receive(stream, frame))

    def _receive(self, stream: Stream, frame: Any) -> None:
        stray = stream is not self.stream
        try:
            self._take(frame, stray=stray)
        except HansaError as error:
            if error.reason is Reason.COORDINATOR_BEHIND:
                self.checker.node_found_behind(self.name)
            if not stray and self.stream is not None:
                self.stream.close()
                self._forget_stream()

    def _take(self, frame: Any, *, stray: bool) -> None:
        if isinstance(frame, Welcome):
            if not stray and self.sender is None:
                self._attach(frame)
            return
        if isinstance(frame, Fenced):
            raise HansaError(Reason.EPOCH_FENCED)
        self.rules.check_epoch(frame.epoch, self.epoch)
        if self.sender is None:
            raise HansaError(Reason.PROTOCOL_VIOLATION)
        if isinstance(frame, EventAck):
            if self.sender.acknowledged(frame.upto_seq):
                self.store.transact(lambda state: _keep_acked(state, frame.upto_seq, self.world.now))
            self.pump()
        elif isinstance(frame, CommandFrame):
            self._command(frame)

    def _attach(self, welcome: Welcome) -> None:
        proof = self.store.transact(lambda state: self.answer(state, welcome))
        self.epoch = welcome.epoch
        self.sender = self.rules.sender(welcome.event_cursor.seq, EVENT_WINDOW)
        assert self.stream is not None
        self.stream.send(self.coordinator, proof)
        self.pump()

    def answer(self, state: NodeState, welcome: Welcome) -> HeadProof:
        """Answer a welcome: the transaction of ``node_agent.link.attaching``."""
        told = CoordinatorTold(
            uuid=welcome.store_uuid,
            generation=welcome.generation,
            event_cursor=welcome.event_cursor,
            command_head=welcome.command_head,
            command_base=welcome.command_base,
        )
        seen = CoordinatorSeen(
            uuid=state.coordinator,
            generation=state.coordinator_generation,
            acked=state.acked,
            commands=state.commands,
        )
        course = self.rules.course(seen, told)
        here = state.events.hash_at(told.event_cursor.seq)
        anew = self.rules.begins_anew(
            course,
            reconciled=state.is_reconciled,
            cursor=told.event_cursor,
            head=state.events.head,
            hash_at_cursor=here,
        )
        if anew:
            state.events = Outbox(base=told.event_cursor)
        restored = course is Course.TELL_AGAIN or not state.is_reconciled
        state.commands = self.rules.command_cursor(seen, told, restored=restored)
        state.coordinator, state.coordinator_generation = told.uuid, told.generation
        state.acked = min(told.event_cursor.seq, state.events.head.seq)
        state.events.acknowledged(state.acked, self.world.now)
        if course is Course.TELL_AGAIN and self.rules.tells_again:
            self._tell_everything(state, with_jobs=True)
        return HeadProof(
            epoch=welcome.epoch,
            nonce=welcome.nonce,
            event_head=state.events.head,
            hash_at_event_cursor=state.events.hash_at(told.event_cursor.seq),
            command_cursor=state.commands,
        )

    def pump(self) -> None:
        """Send the events that are new."""
        if self.sender is None or self.stream is None:
            return
        for entry in self.store.state.events.after(self.sender.after, self.sender.room):
            effect = unpack(entry.body)
            if isinstance(effect, SummaryReleased) and effect.statement is not None:
                self.checker.sent(self.name, effect.run_id, effect.statement)
            self.sender.sending(entry.seq)
            self.stream.send(
                self.coordinator,
                Event(epoch=self.epoch, seq=entry.seq, prev_hash=entry.prev, body=entry.body, effect=effect),
            )

    def prune(self) -> None:
        """Let go of old events that were acknowledged."""
        self.store.transact(lambda state: state.events.prune(self.rules, self.world.now))

    # --- telling -----------------------------------------------------------------------

    def _write(self, state: NodeState, effect: Any) -> None:
        state.events.append(pack(effect), self.world.now)

    def _report(self, state: NodeState, run: RunFacts) -> None:
        self._write(
            state,
            RunReported(
                run_id=run.run_id, attempt=run.attempt, execution=run.execution, state=run.state, reason="", incident=""
            ),
        )

    def _tell_run(self, state: NodeState, run: RunFacts) -> None:
        kept = state.outgoing.get(run.run_id)
        if run.state is RunState.RELEASED and kept is not None:
            if not self.rules.sends_again_as_signed and kept.content is not None:
                kept.statement = statement_of(run, kept.content, self.world.fresh("salt"))
                self.checker.signed(self.name, run, kept.statement)
            self._release_event(state, run, kept)
            kept.uploaded = kept.content is None
        self._report(state, run)

    def _release_event(self, state: NodeState, run: RunFacts, kept: Outgoing) -> None:
        self._write(
            state,
            SummaryReleased(
                run_id=run.run_id,
                attempt=run.attempt,
                execution=run.execution,
                digest=subject_of(kept.statement),
                statement=kept.statement,
            ),
        )

    def _tell_everything(self, state: NodeState, *, with_jobs: bool) -> None:
        for run in list(state.runs.values()):
            if with_jobs:
                self._write(state, JobReported(state.jobs[question_of(state.jobs[run.run_id]).run_id(self.name)]))
            self._tell_run(state, run)

    def _advance(self, state: NodeState, run: RunFacts, event: RunEvent) -> RunFacts:
        to = self.rules.next_run_state(run.state, event)
        self.checker.node_moved(self.name, run, to)
        moved = replace(run, state=to)
        state.runs[run.run_id] = moved
        self._report(state, moved)
        return moved

    # --- commands ----------------------------------------------------------------------

    def _command(self, frame: CommandFrame) -> None:
        assert self.stream is not None
        if not self.rules.commands_acked_after_commit:
            self.stream.send(self.coordinator, CommandAck(self.epoch, frame.seq))
        upto = self.store.transact(lambda state: self._apply(state, frame))
        self.stream.send(self.coordinator, CommandAck(self.epoch, upto))
        self.pump()

    def _apply(self, state: NodeState, frame: CommandFrame) -> int:
        receiver = self.rules.receiver(state.commands)
        verdict = receiver.judge(frame.seq, frame.prev_hash)
        if verdict is Verdict.REPEAT:
            return receiver.cursor.seq
        if verdict is not Verdict.APPLY:
            raise HansaError(Reason.PROTOCOL_VIOLATION, log=verdict.name)
        body = unpack(frame.body)
        if isinstance(body, Offer):
            self._offer(state, body)
        elif isinstance(body, Cancel):
            self._cancel(state, body)
        elif isinstance(body, Reconcile):
            self._reconcile(state, body)
        state.commands = receiver.applied(frame.body)
        return state.commands.seq

    def _offer(self, state: NodeState, offer: Offer) -> None:
        known = state.runs.get(offer.run_id)
        if known is not None:
            if state.coordinator_generation > 1:
                self._tell_run(state, known)
            return
        question = question_of(offer.job)
        state.jobs[offer.run_id] = offer.job
        run = RunFacts(
            run_id=offer.run_id,
            attempt=offer.attempt,
            execution=0,
            state=RunState.OFFERED,
            not_after=question.not_after,
            created_at=self.now,
        )
        dice = self.world.random.random()
        if dice < 0.05 or question.not_after <= self.now:
            self._advance(state, run, RunEvent.DECLINE)
        elif dice < 0.2:
            self._advance(state, run, RunEvent.ASK_APPROVAL)
        else:
            self._advance(state, self._advance(state, run, RunEvent.ACCEPT), RunEvent.QUEUE)

    def _cancel(self, state: NodeState, cancel: Cancel) -> None:
        run = state.runs.get(cancel.run_id)
        if run is None:
            return
        for due in self.rules.when_cancelled(run, cancel.attempt):
            run = self._advance(state, run, due.event)

    def _reconcile(self, state: NodeState, command: Reconcile) -> None:
        if not state.is_reconciled and command.generation == state.generation:
            for recorded in command.runs:
                if self.rules.adopts:
                    self._adopt(state, recorded)
            state.reconciled = state.generation
        self._tell_everything(state, with_jobs=state.coordinator_generation > 1)

    def _adopt(self, state: NodeState, recorded: RecordedRun) -> None:
        run = state.runs.get(recorded.run_id)
        if run is None:
            return
        execution = max(run.execution, recorded.execution + (run.state is RunState.STAGING))
        to = self.rules.adopt(run.state, recorded.state)
        if to is run.state or to is not recorded.state:
            state.runs[run.run_id] = replace(run, execution=execution)
            if run.state is not RunState.RELEASED:
                self.checker.node_adopted(self.name, run, run.state, execution)
            return
        if recorded.statement is not None:
            execution = max(execution, unpack(recorded.statement.payload)[2])
            state.outgoing[run.run_id] = Outgoing(None, recorded.statement, uploaded=True)
        self.checker.node_adopted(self.name, run, to, execution)
        state.runs[run.run_id] = replace(run, state=to, execution=execution)


def _keep_acked(state: NodeState, upto: int, now: datetime) -> None:
    state.acked = max(state.acked, upto)
    state.events.acknowledged(state.acked, now)
