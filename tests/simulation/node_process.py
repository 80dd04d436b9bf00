"""The simulated node: an agent over a plain store, its broker and its workers, decided by the production rules."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from coordinator.domain.frames import Welcome
from hansa.contract.errors import HansaError
from hansa.contract.states import RUN_TERMINAL, RunEvent, RunState
from node_agent.run_rules import STARTED, RunFacts
from tests.simulation.checker import Checker
from tests.simulation.coordinator_process import CoordinatorProcess
from tests.simulation.node_link import NodeLink
from tests.simulation.records import NodeState, Outgoing, statement_of
from tests.simulation.wire import Stream, call
from tests.simulation.world import World

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


class NodeProcess(NodeLink):
    """The agent with its broker and its workers; the workers outlive the agent."""

    def __init__(self, world: World, name: str, coordinator: CoordinatorProcess, checker: Checker) -> None:
        """Begin with an empty store and no workers."""
        super().__init__(world, name, coordinator, checker)
        # The store that a restore replaces has it, also where the coordinator was restored to before it.
        self._highest_generation = 1
        self.processes: list[Work] = []
        self._last_tick: Any = None
        world.every(1.0, lambda: self.guard(self.tick))
        world.every(2.0, lambda: self.guard(self.dial))
        world.every(2.0, lambda: self.guard(self.upload))
        world.every(3.0, lambda: self.guard(self.people))
        world.every(9.0, lambda: self.guard(self.prune))

    def is_alive(self, run_id: str) -> bool:
        """Say whether any process of the run is alive."""
        return any(work.alive for work in self.processes if work.run_id == run_id)

    # --- the process -------------------------------------------------------------------

    def start(self) -> None:
        """Start the agent on its store, and the scheduler with it."""
        super().start()
        self._last_tick = None

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


def _mark(state: NodeState, run_id: str) -> None:
    if run_id in state.outgoing:
        state.outgoing[run_id].uploaded = True
