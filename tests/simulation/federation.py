"""One seed's history: storms in which everything goes wrong, and calms in which people mend and everything has to end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL
from tests.simulation.checker import Checker
from tests.simulation.coordinator_process import CoordinatorProcess
from tests.simulation.node_process import NodeProcess
from tests.simulation.records import Question, later
from tests.simulation.rules import Rules
from tests.simulation.wire import Stream, call
from tests.simulation.world import Odds, Store, World

ROUNDS = 3
STORM_SECONDS = 90.0
# The deadlines of what was asked in the storm, and some time for what follows from them.
CALM_SECONDS = 420.0
NODES = ("ES", "FI", "GB")


@dataclass(frozen=True)
class Outcome:
    """What one seed came to."""

    seed: int
    steps: int
    checks: int
    jobs: int
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)


class Federation:
    """A coordinator, its nodes, a researcher, and whoever makes things go wrong."""

    def __init__(self, seed: int, rules: Rules | None = None, odds: Odds | None = None) -> None:
        """Make everything; nothing happens before ``run``."""
        self.world = World(seed, rules, odds)
        self.checker = Checker(self.world)
        self.coordinator = CoordinatorProcess(self.world, list(NODES), self.checker)
        self.nodes = {name: NodeProcess(self.world, name, self.coordinator, self.checker) for name in NODES}
        self.checker.coordinator, self.checker.nodes = self.coordinator, self.nodes
        self.world.after_step = self.checker.after_step
        self._asked: list[Question] = []
        self._stores: list[Store[Any]] = [self.coordinator.store, *(node.store for node in self.nodes.values())]
        self.world.every(1.0, self._nemesis)
        self.world.every(5.0, self._researcher)
        self.world.every(12.0, self._back_up)

    def run(self) -> Outcome:
        """Live through all rounds.

        Raises:
            Violation: a promise was broken.
        """
        world = self.world
        for _ in range(ROUNDS):
            world.stormy = True
            world.run_until(world.seconds + STORM_SECONDS)
            world.stormy = False
            self._mend()
            world.run_until(world.seconds + CALM_SECONDS, self._is_quiet)
            self.checker.healed()
            self.checker.forget(self.coordinator.store.state)
            for store in self._stores:
                # One from before this calm is of another history.
                store.forget_backups()
        ends = Counter(job.state.value for job in self.coordinator.store.state.jobs.values())
        return Outcome(world.seed, world.steps, self.checker.checks, len(self._asked), world.faults, ends)

    # --- the researcher ----------------------------------------------------------------

    def _researcher(self) -> None:
        dice = self.world.random
        if not self.world.stormy:
            return
        if len(self._asked) < 60 and dice.random() < 0.9:
            nodes = tuple(sorted(dice.sample(NODES, dice.randint(1, len(NODES)))))
            deadline = later(self.world.now, dice.uniform(30.0, 240.0))
            question = Question(self.world.fresh("job"), nodes, dice.randint(1, len(nodes)), deadline)
            self._asked.append(question)
            self._submit(question)
        stored = [one for one in self._asked if one.job_id in self.coordinator.store.state.jobs]
        if stored and self.world.fault("other bytes under a known id", 0.1):
            known = dice.choice(stored)
            self.coordinator.submit(Question(known.job_id, known.nodes, known.quorum, known.not_after, "x").signed())
            if self.coordinator.store.state.signed[known.job_id].payload != known.signed().payload:
                self.world.broken("I1 one id is one question", known.job_id)
        if self._asked and self.world.fault("cancel", 0.25):
            self.coordinator.cancel(dice.choice(self._asked[-8:]).job_id)

    def _submit(self, question: Question) -> None:
        def answered(answer: str) -> None:
            if answer == "OK":
                self.checker.answered[question.job_id] = question
            elif answer == "IDEMPOTENCY_MISMATCH":
                self.world.broken("I1 a repeat is answered", question.job_id)

        def again() -> None:
            if question.job_id not in self.checker.answered and question.not_after > self.world.now:
                self._submit(question)

        call(self.world, self.coordinator, lambda: self.coordinator.submit(question.signed()), answered)
        self.world.after(8.0, again)

    # --- what goes wrong ---------------------------------------------------------------

    def _back_up(self) -> None:
        self.world.random.choice(self._stores).back_up()

    def _nemesis(self) -> None:
        world, coordinator = self.world, self.coordinator
        if not world.stormy:
            return
        if coordinator.up and world.fault("coordinator killed", 0.02):
            coordinator.die()
        if world.fault("coordinator's clock jumps", 0.01):
            coordinator.offset = self._jump()
        self._put_back(coordinator, "coordinator")
        for node in self.nodes.values():
            self._torment(node)

    def _torment(self, node: NodeProcess) -> None:
        world = self.world
        if node.up and world.fault("agent killed", 0.02):
            node.die()
        if world.fault("node's machine lost", 0.006):
            node.kill_all()
            node.die()
        if node.stream is not None:
            self._cut(node, node.stream)
        if world.fault("node's clock jumps", 0.01):
            node.offset = self._jump()
        self._double(node)
        self._put_back(node, "node")
        member = self.coordinator.store.state.members[node.name]
        if member.quarantined and self.coordinator.up and world.random.random() < 0.1:
            self._reconcile(node)

    def _double(self, node: NodeProcess) -> None:
        if node.up and self.world.fault("second agent with the same identity", 0.008):
            node.clone(copied=False)
        if node.up and self.world.fault("second agent on a copy of the store", 0.002):
            node.clone(copied=True)

    def _put_back(self, process: CoordinatorProcess | NodeProcess, who: str) -> None:
        if self.world.random.random() >= self.world.odds.restore:
            return
        by_hand = self.world.random.random() < self.world.odds.by_hand
        if process.restore(raised=not by_hand):
            self.world.fault(f"{who} put back by hand" if by_hand else f"{who} restored")

    def _jump(self) -> timedelta:
        return timedelta(seconds=self.world.random.choice((-3600.0, -60.0, -7.0, 7.0, 20.0, 60.0)))

    def _cut(self, node: NodeProcess, stream: Stream) -> None:
        if self.world.fault("stream broken", 0.03):
            stream.close()
        elif not node.partitioned and self.world.fault("partition", 0.008):
            self._partition(node, stream)

    def _partition(self, node: NodeProcess, stream: Stream) -> None:
        node.partitioned = stream.cut_off = True
        stream.close()

        def heal() -> None:
            node.partitioned = False

        self.world.after(self.world.random.uniform(3.0, 40.0), heal)

    # --- what people mend --------------------------------------------------------------

    def _reconcile(self, node: NodeProcess) -> None:
        """Restore the node's store as it should be, if nobody has, and have it reconciled."""
        member = self.coordinator.store.state.members[node.name]
        if node.store.state.generation <= member.store.generation:
            node.up = True
            node.die(down=1.0)
            node.raise_generation()
        self.coordinator.reconcile(node.name)

    def _mend(self) -> None:
        coordinator = self.coordinator
        coordinator.offset = timedelta()
        if self.checker.coordinator_by_hand:
            coordinator.up = True
            coordinator.die(down=1.0)
            coordinator.raise_generation()
            self.checker.coordinator_by_hand = False
        for node in self.nodes.values():
            node.offset = timedelta()
            node.partitioned = False
        self.world.after(20.0, self._look_after)

    def _look_after(self) -> None:
        """Have nodes reconciled that are set apart, and ask again what was forgotten; as long as it is calm."""
        if self.world.stormy:
            return
        for node in self.nodes.values():
            quarantined = self.coordinator.store.state.members[node.name].quarantined
            undecided = node.name in self.checker.by_hand and "does not hold" in quarantined
            if (quarantined and not undecided) or self._waits_in_vain(node):
                self._reconcile(node)
        for question in self._asked:
            forgotten = question.job_id not in self.coordinator.store.state.jobs
            if forgotten and question.job_id in self.checker.answered and question.not_after > self.world.now:
                self.coordinator.submit(question.signed())
        self.world.after(20.0, self._look_after)

    def _waits_in_vain(self, node: NodeProcess) -> bool:
        """Say whether the node has forgotten its reconciliation, and nothing in this model can tell.

        It was put back by hand into the time before it, and begins anew behind both cursors: the
        heads agree, and no command is to come that would reconcile it. What tells it is the audit
        log, which has become shorter; people then restore the store properly.
        """
        state, member = node.store.state, self.coordinator.store.state.members[node.name]
        if node.name not in self.checker.unreconciled_by_hand or state.is_reconciled or node.sender is None:
            return False
        known = state.generation == member.store.generation and not member.store.reconciling
        return known and not member.quarantined and state.commands == member.commands.head

    def _is_quiet(self) -> bool:
        state = self.coordinator.store.state
        if any(job.state not in JOB_TERMINAL for job in state.jobs.values()):
            return False
        return all(self._is_settled(node) for node in self.nodes.values())

    def _is_settled(self, node: NodeProcess) -> bool:
        state, member = node.store.state, self.coordinator.store.state.members[node.name]
        if node.sender is None or not state.is_reconciled or member.quarantined:
            return False
        if any(run.state not in RUN_TERMINAL for run in state.runs.values()):
            return False
        sent = all(kept.uploaded for kept in state.outgoing.values())
        return sent and member.store.event_cursor == state.events.head and state.commands == member.commands.head


def live(seed: int, rules: Rules | None = None, odds: Odds | None = None) -> Outcome:
    """Return what became of ``seed``.

    Raises:
        Violation: a promise was broken.
    """
    return Federation(seed, rules, odds).run()
