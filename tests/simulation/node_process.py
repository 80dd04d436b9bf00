"""The simulated node: an agent over a plain store, its broker and its workers, decided by the production rules."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
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
from hansa.contract.outbox import Head, Verdict
from hansa.contract.states import RUN_TERMINAL, RunEvent, RunState
from node_agent.run_rules import STARTED, RunFacts
from tests.simulation.checker import Checker
from tests.simulation.coordinator_process import CoordinatorProcess
from tests.simulation.records import NodeState, Outbox, Outgoing, pack, question_of, statement_of, subject_of, unpack
from tests.simulation.wire import Stream, call
from tests.simulation.world import Crash, Store, World

_ROOM = 4
_BACK_TO_BACK = timedelta(seconds=5)
_ACTIVE = (RunState.STAGING, RunState.RUNNING, RunState.CHECKING, RunState.CANCELLING)


@dataclass(eq=False)
class Work:
    """An execution's process and the worker that watches it; neither dies with the agent."""

    run_id: str
    execution: int
    ends_at: float
    alive: bool = True
    frozen_until: float = 0.0
    has_result: bool = False


class NodeProcess:
    """The agent: a stream in memory, everything else in its store."""

    def __init__(self, world: World, name: str, coordinator: CoordinatorProcess, checker: Checker) -> None:
        """Begin with an empty store."""
        self.world, self.rules, self.checker, self.name = world, world.rules, checker, name
        self.coordinator = coordinator
        self.store = Store(world, NodeState(uuid=world.fresh(f"store-{name}")))
        self.up = True
        self.offset = timedelta()
        self.life = 0
        # The store that a restore replaces has it, also where the coordinator was restored to before it.
        self._highest_generation = 1
        self.partitioned = False
        self.processes: list[Work] = []
        self.stream: Stream | None = None
        self.epoch = 0
        self.sender: Any = None
        self._last_tick: Any = None
        world.every(1.0, lambda: self.guard(self.tick))
        world.every(2.0, lambda: self.guard(self.dial))
        world.every(2.0, lambda: self.guard(self.upload))
        world.every(3.0, lambda: self.guard(self.people))
        world.every(9.0, lambda: self.guard(self.prune))

    @property
    def now(self) -> Any:
        """The time that the node's clock shows."""
        return self.world.now + self.offset

    def is_alive(self, run_id: str) -> bool:
        """Say whether any process of the run is alive."""
        return any(work.alive for work in self.processes if work.run_id == run_id)

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
        self._last_tick = None

    def _forget_stream(self) -> None:
        self.stream, self.sender, self.epoch = None, None, 0

    def restore(self, *, raised: bool) -> bool:
        """Put the store back to a backup, by ``hansa-node restore`` or by hand; agent and workers are stopped for it."""
        if not self.store.restore():
            return False
        self.up = True
        self.die(down=2.0)
        self.kill_all()
        if raised:
            self.raise_generation()
        self.checker.node_restored(self.name, self.store.state, raised=raised)
        return True

    def raise_generation(self) -> None:
        """Do what ``hansa-node restore`` does to the store's own row, above all that was ever there."""
        state = self.store.state
        known = self.coordinator.store.state.members[self.name].store.generation
        state.generation = self._highest_generation = max(state.generation, known, self._highest_generation) + 1

    def kill_all(self) -> None:
        """Lose every worker and process of the node."""
        for work in self.processes:
            work.alive = False
        self.processes.clear()

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

    # --- the scheduler -----------------------------------------------------------------

    def tick(self) -> None:
        """Take the scheduler's step."""
        now, last = self.now, self._last_tick
        if last is None or not _BACK_TO_BACK > now - last > -_BACK_TO_BACK:
            self.store.transact(self._pardon)
        self.store.transact(self._mend)
        for run_id in self.store.transact(self._start):
            self._enqueue(run_id)
        self._last_tick = now
        self.pump()

    def _pardon(self, state: NodeState) -> None:
        for run in state.open_runs(*STARTED):
            state.runs[run.run_id] = replace(run, beat_at=self.now)

    def _mend(self, state: NodeState) -> None:
        for run in list(state.runs.values()):
            what = None if run.state in RUN_TERMINAL else self.rules.due(run, self.now)
            if what is None:
                continue
            if self.rules.kills_before_confirming:
                self._kill(run.run_id)
            self._advance(state, run, what.event)

    def _kill(self, run_id: str) -> None:
        for work in self.processes:
            if work.run_id == run_id:
                work.alive = False

    def _start(self, state: NodeState) -> list[str]:
        if self.rules.holds_until_reconciled and not state.is_reconciled:
            return []
        room = _ROOM - len(list(state.open_runs(*_ACTIVE)))
        lost = [run for run in state.open_runs(RunState.STAGING) if self.rules.is_message_lost(run, self.now)]
        started = self.rules.next_to_start(list(state.open_runs(RunState.QUEUED)), room)
        for run_id in started:
            run = replace(
                state.runs[run_id], execution=state.runs[run_id].execution + 1, enqueued_at=self.now, beat_at=None
            )
            self.checker.started(run, self.now)
            self._advance(state, run, RunEvent.STAGE)
        for run in lost:
            state.runs[run.run_id] = replace(run, enqueued_at=self.now)
        return [*started, *(run.run_id for run in lost)]

    # --- the broker and the workers ------------------------------------------------------

    def _enqueue(self, run_id: str) -> None:
        world = self.world
        if world.fault("task message lost", 0.1):
            return
        times = 2 if world.fault("task message doubled", 0.15) else 1
        for _ in range(times):
            late = world.random.uniform(0.1, 30.0) if times == 2 else world.random.uniform(0.05, 0.5)
            world.after(late, lambda: self.guard(lambda: self._claim(run_id)))

    def _claim(self, run_id: str) -> None:
        if self.store.transact(lambda state: self._claimed(state, run_id)):
            run = self.store.state.runs[run_id]
            self.checker.claimed(self.name, run)
            work = Work(run_id, run.execution, self.world.seconds + self.world.random.uniform(1.0, 25.0))
            self.processes.append(work)
            self._watch(work)
        self.pump()

    def _claimed(self, state: NodeState, run_id: str) -> bool:
        run = state.runs.get(run_id)
        if (
            run is None
            or not self.rules.may_claim(run)
            or (self.rules.holds_until_reconciled and not state.is_reconciled)
        ):
            return False
        self._advance(state, replace(run, beat_at=self.now), RunEvent.START)
        return True

    def _watch(self, work: Work) -> None:
        """Take one step of the worker that watches an execution."""
        world = self.world
        if work not in self.processes:
            return
        if world.fault("worker lost", 0.02):
            work.alive = False
            self.processes.remove(work)
            return
        if work.frozen_until > world.seconds:
            pass
        elif world.fault("worker frozen", 0.03):
            work.frozen_until = world.seconds + world.random.uniform(10.0, 60.0)
        elif world.seconds >= work.ends_at:
            work.has_result = work.has_result or work.alive
            work.alive = False
            if self.guard(lambda: self._finish(work)):
                self.processes.remove(work)
                return
        elif self.guard(lambda: self.store.transact(lambda state: self._beat(state, work))) == "stop":
            work.alive = False
            work.ends_at = world.seconds
        world.after(world.random.uniform(2.0, 4.0), lambda: self._watch(work))

    def _beat(self, state: NodeState, work: Work) -> str:
        run = state.runs.get(work.run_id)
        if run is None or not self.rules.is_current(run, work.execution):
            return "stop"
        state.runs[run.run_id] = replace(run, beat_at=self.now)
        return "stop" if run.state is RunState.CANCELLING else "go on"

    def _finish(self, work: Work) -> bool:
        self.store.transact(lambda state: self._finished(state, work))
        self.pump()
        return True

    def _finished(self, state: NodeState, work: Work) -> None:
        run = state.runs.get(work.run_id)
        if run is None or not self.rules.is_current(run, work.execution):
            return
        if self.rules.holds_until_reconciled and not state.is_reconciled:
            return
        if run.state is RunState.CANCELLING:
            self._advance(state, run, RunEvent.CONFIRM_CANCELLED)
        elif not work.has_result or self.world.random.random() < 0.05:
            self._advance(state, run, RunEvent.FAIL)
        else:
            self.checker.committed(run, work.execution)
            self._admit(state, self._advance(state, run, RunEvent.COLLECT))

    def _admit(self, state: NodeState, run: RunFacts) -> None:
        content, dice = self.world.fresh("content").encode(), self.world.random.random()
        if dice < 0.1:
            self._advance(state, run, RunEvent.WITHHOLD)
        elif dice < 0.4:
            state.airlock[run.run_id] = content
            self._advance(state, run, RunEvent.ASK_RELEASE)
        else:
            self._release(state, run, content)

    def _release(self, state: NodeState, run: RunFacts, content: bytes) -> None:
        statement = statement_of(run, content, self.world.fresh("salt"))
        self.checker.signed(self.name, run, statement)
        state.outgoing[run.run_id] = Outgoing(content, statement)
        self._release_event(state, run, state.outgoing[run.run_id])
        self._advance(state, run, RunEvent.RELEASE)

    # --- people, and the way out -----------------------------------------------------------

    def people(self) -> None:
        """Let people decide on some of what waits for them; some things wait for ever."""
        self.store.transact(self._decide)
        self.pump()

    def _decide(self, state: NodeState) -> None:
        if self.rules.holds_until_reconciled and not state.is_reconciled:
            return
        for run in state.open_runs(RunState.AWAITING_APPROVAL, RunState.AWAITING_RELEASE):
            dice = self.world.random.random()
            if dice > 0.25:
                continue
            if run.state is RunState.AWAITING_APPROVAL:
                if dice < 0.05:
                    self._advance(state, run, RunEvent.DECLINE)
                else:
                    self._advance(state, self._advance(state, run, RunEvent.APPROVE), RunEvent.QUEUE)
            elif dice < 0.05:
                self._advance(state, run, RunEvent.WITHHOLD)
            else:
                self._release(state, run, state.airlock.pop(run.run_id))

    def upload(self) -> None:
        """Send the bytes of what was released and has not arrived."""
        if self.partitioned or self.sender is None:
            return
        for run_id, kept in self.store.state.outgoing.items():
            if not kept.uploaded and kept.content is not None:
                self._send(run_id, kept.content)

    def _send(self, run_id: str, content: bytes) -> None:
        life = self.life

        def arrive() -> str | None:
            # A call dies with the process that made it.
            return self.coordinator.upload(self.name, run_id, content) if life == self.life else None

        def answered(_: Any) -> None:
            if life == self.life:
                self.guard(lambda: self.store.transact(lambda state: _mark(state, run_id)))

        if not self.rules.upload_marked_after_answer:
            self.store.transact(lambda state: _mark(state, run_id))
        call(self.world, self.coordinator, arrive, answered)

    def clone(self, *, copied: bool) -> None:
        """Let a second agent with the same identity attach, and go away again; on this store, or on a copy of it."""
        if copied:
            # What the copy does not have it has lost: it may well be set apart, and this node with it.
            self.checker.touched.add(self.name)
        Clone(self, deepcopy(self.store.state) if copied else self.store.state)


class Clone:
    """A second agent: it attaches, which fences the first, and says nothing more."""

    def __init__(self, node: NodeProcess, state: NodeState) -> None:
        """Dial at once."""
        self.up = True
        self._node, self._state = node, state
        self._stream = Stream(node.world, node.name, (self, node.coordinator))
        self._stream.send(node.coordinator, node.hello(self._state))
        node.world.after(node.world.random.uniform(2.0, 15.0), self._stream.close)

    def receive(self, stream: Stream, frame: Any) -> None:
        """Prove the heads, from the copy."""
        if isinstance(frame, Welcome) and self._state.is_reconciled:
            try:
                proof = self._node.answer(self._state, frame)
            except HansaError:
                stream.close()
                return
            stream.send(self._node.coordinator, proof)

    def ended(self, stream: Stream) -> None:
        """Do nothing: it does not come back."""


def _keep_acked(state: NodeState, upto: int, now: datetime) -> None:
    state.acked = max(state.acked, upto)
    state.events.acknowledged(state.acked, now)


def _mark(state: NodeState, run_id: str) -> None:
    if run_id in state.outgoing:
        state.outgoing[run_id].uploaded = True


def head_of(state: NodeState) -> Head:
    """Return the last event's place."""
    return state.events.head
