"""The promises, watched while they are kept: hooks that the processes call, and a look at everything after each step.

Names are those of the list in ``docs/explanation/simulation.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from coordinator.domain.frames import HeadProof
from coordinator.domain.records import JobRecord, RunRecord
from hansa.contract.envelope import Signed
from hansa.contract.outbox import Head
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, RUN_TRANSITIONS, JobState, RunState
from node_agent.run_rules import RunFacts
from tests.simulation.records import CoordinatorState, NodeState, Question
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.coordinator_process import CoordinatorProcess
    from tests.simulation.node_process import NodeProcess

_EDGES = {(before, after) for (before, _), after in RUN_TRANSITIONS.items()}


def _reach() -> dict[RunState, set[RunState]]:
    found = {state: {state} for state in RunState}
    for _ in RunState:
        for before, after in _EDGES:
            for reached in found.values():
                if before in reached:
                    reached.add(after)
    return found


_REACH = _reach()


class Checker:
    """Knows what has happened, and says when a promise is broken."""

    def __init__(self, world: World) -> None:
        """Know nothing yet; the processes are given later."""
        self.world = world
        self.nodes: dict[str, NodeProcess] = {}
        self.coordinator: CoordinatorProcess | None = None
        self.highest_generation = 1
        self.by_hand: set[str] = set()
        # Put back by hand into the time between a restore and its reconciliation.
        self.unreconciled_by_hand: set[str] = set()
        self.touched: set[str] = set()
        self.coordinator_touched = False
        self.coordinator_by_hand = False
        self.answered: dict[str, Question] = {}
        self.checks = 0
        self._accepted: dict[str, set[bytes]] = {}
        self._signed: dict[str, set[bytes]] = {}
        self._started: dict[str, int] = {}
        self._heads: dict[str, Head] = {}
        self._epochs: dict[str, int] = {}

    # --- what a restore changes --------------------------------------------------------

    def coordinator_restored(self, state: CoordinatorState, *, raised: bool) -> None:
        """Begin again with what the store knows now."""
        self.coordinator_touched = True
        if not raised:
            self.coordinator_by_hand = True
        self._heads = {name: member.store.event_cursor for name, member in state.members.items()}
        self._forget_what_all_lost()

    def node_restored(self, node: str, state: NodeState, *, raised: bool) -> None:
        """Begin again with what the store knows now."""
        self.touched.add(node)
        self.unreconciled_by_hand.discard(node)
        if not raised:
            self.by_hand.add(node)
            if not state.is_reconciled:
                self.unreconciled_by_hand.add(node)
        for run in state.runs.values():
            self._started[run.run_id] = run.execution
        for run_id in [name for name in self._started if name.endswith(f"/{node}") and name not in state.runs]:
            del self._started[run_id]
        self._forget_what_all_lost()

    def _forget_what_all_lost(self) -> None:
        """A release of which neither store has anything left cannot be known again by anybody."""
        assert self.coordinator is not None
        kept = set(self.coordinator.store.state.statements)
        for node in self.nodes.values():
            kept |= node.store.state.outgoing.keys()
        self._accepted = {run_id: found for run_id, found in self._accepted.items() if run_id in kept}

    # --- the coordinator ---------------------------------------------------------------

    def epoch_opened(self, node: str, epoch: int) -> None:
        """I7: no epoch is given twice, not even by a store that was restored."""
        if epoch <= self._epochs.get(node, 0) and not self.coordinator_by_hand:
            self.world.broken("I7 an epoch is given once", f"{node} {epoch}")
        self._epochs[node] = max(epoch, self._epochs.get(node, 0))

    def frame_applied(self, node: str, epoch: int, newest: int) -> None:
        """I7: a frame of an old epoch changes nothing."""
        if epoch != newest:
            self.world.broken("I7 an old epoch changes nothing", f"{node}: epoch {epoch}, newest {newest}")

    def event_applied(self, node: str, event: Any, cursor: Head) -> None:
        """I5: each event is applied once, in order, and the chain is the node's."""
        expected = self._heads.get(node, Head()).after(event.body)
        if cursor != expected or event.seq != expected.seq:
            self.world.broken("I5 events are applied once, in order", f"{node} {event.seq}, expected {expected.seq}")
        self._heads[node] = expected
        own = self.nodes[node].store.state.events.entry(event.seq)
        if own is not None and own.body != event.body and node not in self.touched:
            self.world.broken("I5 what is applied is what the node has written", f"{node} {event.seq}")

    def attached(self, node: str, proof: HeadProof, cursor: Head, acked: int) -> None:
        """I5: nobody is connected who has lost what was received of it, or what it had acknowledged."""
        if proof.event_head.seq < cursor.seq or proof.hash_at_event_cursor != cursor.hash:
            self.world.broken("I5 who is connected has the events that were received", f"{node} {cursor.seq}")
        if proof.command_cursor.seq < acked:
            self.world.broken("I5 who is connected has the commands that it acknowledged", f"{node} {acked}")

    def event_repeated(self, node: str, event: Any, received: Sequence[bytes]) -> None:
        """I5: what is passed over as a repeat is what was received; another event would be lost."""
        if event.body != received[event.seq - 1]:
            self.world.broken("I5 a repeat is what was received", f"{node} {event.seq}")

    def coordinator_moved(self, run: RunRecord, to: RunState) -> None:
        """I4 and I8: ends are final, and nothing runs of what is shown as cancelled."""
        kept = run.state is RunState.CANCELLING and to not in RUN_TERMINAL and to is not run.state
        if run.state in RUN_TERMINAL or kept:
            self.world.broken("I4 an end is final", f"{run.run_id}: {run.state} to {to}")
        foreign = self.coordinator_touched or run.node in self.touched
        if not foreign and run.state is not RunState.CANCELLING and to not in _REACH[run.state]:
            self.world.broken("I4 only transitions of the table", f"{run.run_id}: {run.state} to {to}")
        if to is RunState.CANCELLED and not foreign and self.nodes[run.node].is_alive(run.run_id):
            self.world.broken("I8 nothing runs of what is shown as cancelled", run.run_id)

    def job_moved(self, job: JobRecord, to: JobState) -> None:
        """I4: the end of a job is final, and a completed one has its answers."""
        if job.state in JOB_TERMINAL:
            self.world.broken("I4 a job's end is final", f"{job.job_id}: {job.state} to {to}")
        if to is JobState.COMPLETED and sum(run.stored for run in job.runs) < job.quorum:
            self.world.broken("I2 a completed job has its quorum of answers", job.job_id)

    def admitted(self, question: Question, *, known: bool) -> None:
        """I1: one id is one job."""
        if known:
            self.world.broken("I1 one id is one job", question.job_id)

    def accepted(self, run: RunRecord, statement: Signed) -> None:
        """I2: at most one release per run is ever accepted, and it is one that the node has signed."""
        found = self._accepted.setdefault(run.run_id, set())
        found.add(statement.payload)
        if len(found) > 1 and run.node not in self.by_hand:
            self.world.broken("I2 at most one release per run", run.run_id)
        if statement.payload not in self._signed.get(run.run_id, set()):
            self.world.broken("I2 only what the node has signed", run.run_id)

    def quarantined(self, node: str, fault: str) -> None:
        """No node is set apart that has lost nothing."""
        if node not in self.touched:
            self.world.broken("I10 an honest node is never set apart", f"{node}: {fault}")

    def coordinator_found_behind(self, node: str) -> None:
        """No coordinator is refused that has lost nothing."""
        if not self.coordinator_touched and node not in self.touched:
            self.world.broken("I10 an honest coordinator is never refused", node)

    # --- the nodes ---------------------------------------------------------------------

    def node_moved(self, node: str, run: RunFacts, to: RunState) -> None:
        """I4: a run moves along the table only; I8: nothing runs of a cancelled one."""
        if (run.state, to) not in _EDGES:
            self.world.broken("I4 only transitions of the table", f"{run.run_id}: {run.state} to {to}")
        if to is RunState.CANCELLED and self.nodes[node].is_alive(run.run_id):
            self.world.broken("I8 nothing runs of what is cancelled", run.run_id)

    def node_adopted(self, node: str, run: RunFacts, to: RunState, execution: int) -> None:
        """I4: only a restored node takes an end over, and never another one for its own release."""
        if node not in self.touched or run.state is RunState.RELEASED:
            self.world.broken("I4 only a restored node adopts", f"{run.run_id}: {run.state} to {to}")
        self._started[run.run_id] = max(execution, self._started.get(run.run_id, 0))

    def started(self, run: RunFacts, now: datetime) -> None:
        """I9: nothing starts after its deadline; I6: an execution number has to be a new one."""
        if run.not_after <= now:
            self.world.broken("I9 nothing starts after its deadline", run.run_id)
        if run.execution <= self._started.get(run.run_id, 0):
            self.world.broken("I6 an execution number is given once", f"{run.run_id} {run.execution}")
        self._started[run.run_id] = run.execution

    def claimed(self, node: str, run: RunFacts) -> None:
        """I6: one execution is one process."""
        if any(one.run_id == run.run_id and one.execution == run.execution for one in self.nodes[node].processes):
            self.world.broken("I6 one execution is one process", f"{run.run_id} {run.execution}")

    def committed(self, run: RunFacts, execution: int) -> None:
        """I6: only the highest execution commits."""
        if execution != self._started.get(run.run_id):
            self.world.broken("I6 only the highest execution commits", f"{run.run_id} {execution}")

    def signed(self, node: str, run: RunFacts, statement: Signed) -> None:
        """I2: a run is signed once; a restored node may have lost a signature that nobody has seen."""
        found = self._signed.setdefault(run.run_id, set())
        found.add(statement.payload)
        if len(found) > 1 and node not in self.touched:
            self.world.broken("I2 a release is signed once", run.run_id)
        if run.run_id in self._accepted and node not in self.by_hand:
            self.world.broken("I2 what was accepted is never released again", run.run_id)

    def sent(self, node: str, run_id: str, statement: Signed) -> None:
        """I3: what is sent is what was stored before, with its signature."""
        kept = self.nodes[node].store.state.outgoing.get(run_id)
        if kept is None or kept.statement.payload != statement.payload:
            self.world.broken("I3 stored, then sent, as it was signed", run_id)

    def node_found_behind(self, node: str) -> None:
        """No coordinator is refused that has lost nothing."""
        if not self.coordinator_touched and node not in self.touched:
            self.world.broken("I10 an honest coordinator is never refused", node)

    # --- everything --------------------------------------------------------------------

    def after_step(self) -> None:
        """Look at what must hold at any moment."""
        self.checks += 1
        assert self.coordinator is not None
        for name, member in self.coordinator.store.state.members.items():
            if member.store.event_cursor != self._heads.get(name, Head()):
                self.world.broken("I5 the cursor stands where the last event was applied", name)
            state = self.nodes[name].store.state
            if state.acked > state.events.head.seq:
                self.world.broken("I5 nothing is acknowledged that was not written", name)

    def healed(self) -> None:
        """Look at what must hold once the faults have stopped and people have mended what is theirs to mend."""
        assert self.coordinator is not None
        state = self.coordinator.store.state
        for job_id in self.answered:
            job = state.jobs.get(job_id)
            if job is None and not self.coordinator_touched:
                self.world.broken("I1 no accepted job is lost", job_id)
            if job is not None and job.state not in JOB_TERMINAL:
                self.world.broken("I1 every job ends", f"{job_id} {job.state}")
        for name, node in self.nodes.items():
            self._healed_node(name, node, state)

    def forget(self, state: CoordinatorState) -> None:
        """Begin a new round: what was mended counts as whole again."""
        self.touched = set(self.by_hand)
        self.coordinator_touched = False
        self.answered = {name: one for name, one in self.answered.items() if name in state.jobs}

    def _healed_node(self, name: str, node: NodeProcess, state: CoordinatorState) -> None:
        own, member = node.store.state, state.members[name]
        for run in own.runs.values():
            if run.state not in RUN_TERMINAL:
                self.world.broken("I1 every run ends", f"{run.run_id} {run.state}")
        if name in self.by_hand and member.quarantined:
            return  # two releases of one run: people have to decide which
        if member.quarantined:
            self.world.broken("I10 a reconciled node is not set apart", f"{name}: {member.quarantined}")
        if not own.is_reconciled:
            self.world.broken("I10 no node waits for ever to be reconciled", f"{name}: generation {own.generation}")
        if member.store.event_cursor != own.events.head:
            self.world.broken("I5 all events have arrived", f"{name}: {member.store.event_cursor.seq}")
        self._same_ledger(name, own, state)

    def _same_ledger(self, name: str, own: NodeState, state: CoordinatorState) -> None:
        for run_id, statement in state.statements.items():
            kept = own.outgoing.get(run_id)
            if run_id.endswith(f"/{name}") and (kept is None or kept.statement.payload != statement.payload):
                self.world.broken("I2 the ledger of the node has what was accepted", run_id)
        for run_id in own.outgoing.keys() & state.runs.keys():
            if run_id not in state.statements:
                self.world.broken("I2 what was released has arrived", run_id)
            if own.outgoing[run_id].content is not None and run_id not in state.stored:
                self.world.broken("I2 what was released is stored", run_id)
