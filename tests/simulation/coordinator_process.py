"""The simulated coordinator: the transactions of its services over a plain store, decided by the production rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coordinator.domain.attachment import check_proof
from coordinator.domain.frames import (
    Cancel,
    CommandAck,
    CommandFrame,
    Event,
    EventAck,
    Fenced,
    HeadProof,
    Hello,
    Offer,
    Reconcile,
    RecordedRun,
    Welcome,
)
from hansa.contract.attach import Proof
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.limits import COMMAND_WINDOW
from hansa.contract.outbox import Head, Verdict
from hansa.contract.states import JOB_TERMINAL, RunState
from tests.simulation.checker import Checker
from tests.simulation.coordinator_jobs import CoordinatorJobs
from tests.simulation.records import CoordinatorState, Member, pack, unpack
from tests.simulation.wire import Stream
from tests.simulation.world import Crash, World

UUID = "coordinator"


class Session:
    """One stream's memory; lost with the process."""

    def __init__(self, stream: Stream) -> None:
        """Wait for a hello."""
        self.stream = stream
        self.node = stream.node
        self.welcome: Welcome | None = None
        self.sender: Any = None


class CoordinatorProcess(CoordinatorJobs):
    """The process: sessions in memory, everything else in its store."""

    def __init__(self, world: World, nodes: list[str], checker: Checker) -> None:
        """Begin with a store that knows ``nodes`` and nothing else."""
        super().__init__(world, nodes, checker)
        self.up = True
        self.sessions: dict[Stream, Session] = {}
        world.every(5.0, lambda: self.guard(self.keep_deadlines))
        world.every(9.0, lambda: self.guard(self.prune))

    # --- the process -----------------------------------------------------------------

    def guard(self, what: Callable[[], Any]) -> Any:
        """Do ``what`` if the process is up; die if it says so."""
        if not self.up:
            return None
        try:
            return what()
        except Crash:
            self.die()
            return None

    def die(self, *, down: float | None = None) -> None:
        """Lose all memory; start again after a while."""
        if not self.up:
            return
        self.up = False
        for stream in list(self.sessions):
            stream.close()
        self.sessions.clear()
        self.world.after(self.world.random.uniform(0.5, 8.0) if down is None else down, self.start)

    def start(self) -> None:
        """Start the process on its store."""
        if self.up:
            return
        self.up = True
        self.guard(lambda: self.store.transact(self._disconnect_all))

    def _disconnect_all(self, state: CoordinatorState) -> None:
        for member in state.members.values():
            if member.connected:
                member.connected, member.since = False, self.now

    def restore(self, *, raised: bool) -> bool:
        """Put the store back to a backup, by an operator's command or by hand."""
        if not self.store.restore():
            return False
        self.up = True  # for ``die`` to close what is open
        self.die(down=2.0)
        if raised:
            self.raise_generation()
        self.checker.coordinator_restored(self.store.state, raised=raised)
        return True

    def raise_generation(self) -> None:
        """Do what ``hansa-coordinator restore`` does to the store; the process is down."""
        self.checker.highest_generation += 1
        self.store.state.generation = self.checker.highest_generation

    # --- streams ---------------------------------------------------------------------

    def receive(self, stream: Stream, frame: Any) -> None:
        """Take a frame; one of a stream that is over goes to the node's newest session."""
        self.guard(lambda: self._receive(stream, frame))

    def _receive(self, stream: Stream, frame: Any) -> None:
        session = self.sessions.get(stream)
        if session is None and stream.open and isinstance(frame, Hello):
            session = self.sessions[stream] = Session(stream)
        stray = session is None
        if session is None:
            session = next((one for one in reversed(self.sessions.values()) if one.node == stream.node), None)
        if session is None:
            return
        try:
            self._take(session, frame, stray=stray)
        except HansaError as error:
            if not stray:
                self._hang_up(session, error)

    def ended(self, stream: Stream) -> None:
        """Forget a stream that is over."""
        self.guard(lambda: self._end(stream))

    def _end(self, stream: Stream) -> None:
        session = self.sessions.pop(stream, None)
        if session is not None and session.welcome is not None:
            welcome = session.welcome
            self.store.transact(lambda state: self._disconnect(state, session.node, welcome.epoch))

    def _disconnect(self, state: CoordinatorState, node: str, epoch: int) -> None:
        member = state.members[node]
        if member.epoch == epoch and member.connected:
            member.connected, member.since = False, self.now

    def _hang_up(self, session: Session, error: HansaError) -> None:
        epoch = session.welcome.epoch if session.welcome is not None else 0
        session.stream.send(session.stream.ends[0], Fenced(epoch, error.reason.value))
        session.stream.close()
        self._end(session.stream)

    def _take(self, session: Session, frame: Any, *, stray: bool) -> None:
        if isinstance(frame, Hello):
            if session.welcome is None:
                self._greet(session, frame)
            return
        welcome = session.welcome
        if welcome is None:
            raise HansaError(Reason.PROTOCOL_VIOLATION)
        if isinstance(frame, HeadProof):
            if session.sender is None or stray:
                self._connect(session, welcome, frame)
            return
        self._stream(session, welcome, frame)

    def _stream(self, session: Session, welcome: Welcome, frame: Any) -> None:
        self.rules.check_epoch(frame.epoch, welcome.epoch)
        if session.sender is None:
            raise HansaError(Reason.PROTOCOL_VIOLATION)
        if isinstance(frame, Event):
            self._event(session, welcome, frame)
        elif isinstance(frame, CommandAck) and session.sender.acknowledged(frame.upto_seq):
            self.store.transact(lambda state: self._acknowledge(state, session, welcome, frame))
            self._pump(session)

    # --- attach ----------------------------------------------------------------------

    def _greet(self, session: Session, hello: Hello) -> None:
        found = self.store.transact(lambda state: self._greeting(state, session.node, hello))
        if isinstance(found, str):
            raise HansaError(Reason.NODE_QUARANTINED, log=found)
        session.welcome = found
        for other in [one for one in self.sessions.values() if one.node == session.node and one is not session]:
            if other.welcome is not None and other.welcome.epoch < found.epoch:
                self._hang_up(other, HansaError(Reason.EPOCH_FENCED))
        session.stream.send(session.stream.ends[0], found)

    def _greeting(self, state: CoordinatorState, node: str, hello: Hello) -> Welcome | str:
        member = state.members[node]
        if member.quarantined:
            return member.quarantined
        fault = self.rules.store_fault(member.store, uuid=hello.store_uuid, generation=hello.generation)
        if fault:
            return self._quarantine(state, node, fault)
        member.epoch = self.rules.next_epoch(member.epoch, state.generation)
        self.checker.epoch_opened(node, member.epoch)
        reconciling = member.store.reconciling
        member.store = replace(member.store, uuid=hello.store_uuid, generation=hello.generation, reconciling=False)
        if reconciling:
            self._tell_recorded(state, node, member, hello.generation)
        return Welcome(
            epoch=member.epoch,
            nonce=self.world.random.randbytes(32),
            store_uuid=UUID,
            generation=state.generation,
            event_cursor=member.store.event_cursor,
            command_head=member.commands.head,
            command_base=Head(member.acked, member.commands.hash_at(member.acked)),
        )

    def _tell_recorded(self, state: CoordinatorState, node: str, member: Member, generation: int) -> None:
        runs = [run for run in state.runs.values() if run.node == node]
        for run in runs:
            if run.run_id not in state.statements:
                state.stored.pop(run.run_id, None)
            job_id = state.job_of[run.run_id]
            offer = Offer(run_id=run.run_id, job_id=job_id, round=1, attempt=run.attempt, job=state.signed[job_id])
            member.commands.append(pack(offer), self.world.now)
        for run in runs:
            if run.state is RunState.CANCELLING:
                member.commands.append(pack(Cancel(run.run_id, run.attempt)), self.world.now)
        told = Reconcile(tuple(_recorded(state, node)), generation=generation)
        member.commands.append(pack(told), self.world.now)

    def _connect(self, session: Session, welcome: Welcome, proof: HeadProof) -> None:
        check_proof(proof, epoch=welcome.epoch, nonce=welcome.nonce)
        fault = self.store.transact(lambda state: self._proven(state, session.node, welcome, proof))
        if fault:
            raise HansaError(Reason.NODE_QUARANTINED, log=fault)
        session.sender = self.rules.sender(proof.command_cursor.seq, COMMAND_WINDOW)
        self._pump(session)

    def _proven(self, state: CoordinatorState, node: str, welcome: Welcome, proof: HeadProof) -> str:
        member = self._standing(state, node, welcome.epoch)
        shown = Proof(
            event_head=proof.event_head,
            hash_at_event_cursor=proof.hash_at_event_cursor,
            command_cursor=proof.command_cursor,
        )
        if self.rules.node_lost_events(shown, member.store.event_cursor):
            return self._quarantine(state, node, "the node's events do not continue what was received")
        if self.rules.node_lost_commands(shown, Head(member.acked)):
            return self._quarantine(state, node, "the node has forgotten commands that it had acknowledged")
        here = member.commands.hash_at(proof.command_cursor.seq)
        if self.rules.coordinator_lost_commands(shown, member.commands.head, here):
            self.checker.coordinator_found_behind(node)
            raise HansaError(Reason.COORDINATOR_BEHIND)
        self.checker.attached(node, proof, member.store.event_cursor, member.acked)
        member.acked = max(member.acked, proof.command_cursor.seq)
        member.commands.acknowledged(member.acked, self.world.now)
        member.connected, member.since = True, self.now
        return ""

    def _standing(self, state: CoordinatorState, node: str, epoch: int) -> Member:
        member = state.members[node]
        self.rules.check_standing(epoch, member.epoch)
        if member.quarantined:
            raise HansaError(Reason.NODE_QUARANTINED)
        return member

    def reconcile(self, node: str) -> None:
        """Do what two operators do with ``hansa admin node reconcile``."""
        member = self.store.state.members[node]
        member.quarantined = ""
        member.store = replace(member.store, reconciling=True)

    # --- commands --------------------------------------------------------------------

    def _acknowledge(self, state: CoordinatorState, session: Session, welcome: Welcome, ack: CommandAck) -> None:
        member = self._standing(state, session.node, welcome.epoch)
        member.acked = max(member.acked, ack.upto_seq)
        member.commands.acknowledged(member.acked, self.world.now)
        self.checker.frame_applied(session.node, ack.epoch, member.epoch)

    def _pump(self, session: Session) -> None:
        if session.sender is None or session.welcome is None:
            return
        member = self.store.state.members[session.node]
        for entry in member.commands.after(session.sender.after, session.sender.room):
            session.sender.sending(entry.seq)
            command = CommandFrame(session.welcome.epoch, entry.seq, entry.prev, entry.body)
            session.stream.send(session.stream.ends[0], command)

    def ring(self) -> None:
        """Send what is new to whoever is attached."""
        for session in list(self.sessions.values()):
            self._pump(session)

    def prune(self) -> None:
        """Let go of old commands that their nodes have applied."""

        def work(state: CoordinatorState) -> None:
            for member in state.members.values():
                member.commands.prune(self.rules, self.world.now)

        self.store.transact(work)

    # --- events ----------------------------------------------------------------------

    def _event(self, session: Session, welcome: Welcome, event: Event) -> None:
        if not self.rules.events_acked_after_commit:
            session.stream.send(session.stream.ends[0], EventAck(welcome.epoch, event.seq))
        found = self.store.transact(lambda state: self._apply(state, session.node, welcome.epoch, event))
        session.stream.send(session.stream.ends[0], EventAck(welcome.epoch, found[0]))
        self.ring()
        if found[1] is not None:
            raise found[1]

    def _apply(self, state: CoordinatorState, node: str, epoch: int, event: Event) -> tuple[int, HansaError | None]:
        member = self._standing(state, node, epoch)
        receiver = self.rules.receiver(member.store.event_cursor)
        match receiver.judge(event.seq, event.prev_hash):
            case Verdict.REPEAT:
                self.checker.event_repeated(node, event, member.received)
                return receiver.cursor.seq, None
            case Verdict.GAP:
                return receiver.cursor.seq, HansaError(Reason.PROTOCOL_VIOLATION)
            case Verdict.FORK:
                self._quarantine(state, node, "the node's events have forked")
                return receiver.cursor.seq, HansaError(Reason.NODE_QUARANTINED)
        try:
            self._effect(state, node, unpack(event.body))
        except HansaError as error:
            return receiver.cursor.seq, error
        member.store = replace(member.store, event_cursor=receiver.applied(event.body))
        member.received.append(event.body)
        self.checker.frame_applied(node, event.epoch, member.epoch)
        self.checker.event_applied(node, event, member.store.event_cursor)
        return receiver.cursor.seq, None

    def upload(self, node: str, run_id: str, content: bytes) -> str | None:
        """Take an upload; return what is answered, None where the process died or refused."""
        found: str | None = self.guard(
            lambda: self.store.transact(lambda state: self._collect(state, node, run_id, content))
        )
        return found

    # --- jobs ------------------------------------------------------------------------

    def submit(self, signed: Signed) -> str | None:
        """Take a job; return what the client is answered."""
        found: str | None = self.guard(lambda: self.store.transact(lambda state: self._submit(state, signed)))
        self.guard(self.ring)
        return found

    def cancel(self, job_id: str) -> str | None:
        """Take a wish to cancel."""
        found: str | None = self.guard(lambda: self.store.transact(lambda state: self._cancel(state, job_id)))
        self.guard(self.ring)
        return found

    def keep_deadlines(self) -> None:
        """Settle what time alone has changed."""

        def work(state: CoordinatorState) -> None:
            for job_id in [job.job_id for job in state.jobs.values() if job.state not in JOB_TERMINAL]:
                self._settle(state, job_id)

        self.store.transact(work)
        self.ring()


def _recorded(state: CoordinatorState, node: str) -> list[RecordedRun]:
    found = []
    for run in state.runs.values():
        if run.node == node:
            statement = state.statements.get(run.run_id)
            found.append(
                RecordedRun(
                    run_id=run.run_id,
                    attempt=run.attempt,
                    execution=run.execution,
                    state=RunState.RELEASED if statement is not None else run.state,
                    reason=RunReason.CANCELLED if run.state is RunState.CANCELLED else "",
                    incident="",
                    statement=statement,
                )
            )
    return found
