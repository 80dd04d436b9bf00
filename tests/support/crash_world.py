"""A coordinator and a node in this process, both from their composition roots, each of which may die at any time.

Everything is real but the sandbox: stores, TLS, sessions, local API, and the
worker's own calls. A process that dies is frozen where it stands, torn down
without another write, and composed anew over the same files, while the rest of
the federation goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, TypeVar, cast
from unittest.mock import patch
from uuid import uuid4

import grpc
import structlog
import uvicorn
from sqlalchemy.orm import Session

import coordinator.bootstrap
import coordinator.server
import node_agent.bootstrap
import node_agent.link.session
from coordinator.bootstrap import Foundation, open_foundation, run_coordinator
from coordinator.config import make_config
from coordinator.founding import Founding, found
from hansa.contract.enrolment import Invitation
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from node_agent.bootstrap import Agent
from node_agent.config import PINNED_ROOT, AgentConfig, StateFolder, config_text, create_state_folder
from node_agent.durable import write_durably
from node_agent.keys.credential import SERVER_CA, Credential, load_credential, store_credential
from node_agent.link.clock_watch import ClockWatch
from node_agent.local_api.client import AgentClient as LocalClient
from node_agent.policy.book import PolicyBook
from node_agent.policy.file import store_policy
from node_agent.policy.policy import policy_of
from node_agent.scheduling import RunQueue
from node_agent.store.database import Database as NodeDatabase
from node_agent.store.outbox import found_store
from tests.support.agent import collected
from tests.support.crash_points import CrashingCoordinatorStore, CrashingNodeStore, Gone, Plan
from tests.support.crash_worker import CrashWorker
from tests.support.job_world import job_trust
from tests.support.live_coordinator import (
    CALL_SECONDS,
    FEDERATION,
    LiveCoordinator,
    ShiftedClock,
    free_ports,
    reason_of,
    trust_keys,
)
from tests.support.siege import pkcs8, policy
from tests.support.trust_world import TrustWorld

T = TypeVar("T")

NODE: Final = NodeId("FI")
DATASET: Final = "FI-aisnp"
PATIENCE: Final = 60.0
_POLL: Final = 0.01
_STEP: Final = timedelta(seconds=4)
# What a caller hears of a process that is dying or not there yet.
_AWAY: Final = frozenset({Reason.AGENT_UNREACHABLE, Reason.COORDINATOR_UNREACHABLE, Reason.INTERNAL})
_AWAY_CODES: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
)
_log = structlog.get_logger(__name__)


class InProcessLife:
    """A daemon's life in this process: dead, nothing of it goes on, until it is buried."""

    def __init__(self, ended: asyncio.Event) -> None:
        """Take the event that tells of its end."""
        self._over = False
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._frozen: set[asyncio.Future[Any]] = set()
        self._buried = False

    def has_ended(self) -> bool:
        return self._over

    def end(self) -> None:
        self._over = True
        self._loop.call_soon_threadsafe(self._ended.set)

    async def nothing_more(self) -> Any:
        if self._buried:
            raise Gone
        future = self._loop.create_future()
        self._frozen.add(future)
        return await future

    def stop_asking(self) -> None:
        """Let what is torn down fail at the store, where it would write its end."""
        self._over = self._buried = True

    def bury(self) -> None:
        """Let what is frozen fail: nobody is there any more to whom it could answer."""
        for future in self._frozen:
            if not future.done():
                future.set_exception(Gone())


@dataclass
class Side:
    """One daemon: ``compose`` makes it, over the files that are there."""

    compose: Callable[[InProcessLife], tuple[Callable[[asyncio.Event], Awaitable[None]], Callable[[], None]]]
    life: InProcessLife = field(init=False)
    # Set when it is to be taken down and started again.
    ended: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    # What breaks its connections, as the end of a process does.
    hang_up: Callable[[], None] = lambda: None
    starts: int = 0
    _task: asyncio.Task[None] | None = None
    _stop: asyncio.Event = field(init=False)
    _close: Callable[[], None] = field(init=False)

    def start(self) -> None:
        """Start it; what becomes of it, ``life`` and the federation's other side tell."""
        self.life, self._stop = InProcessLife(self.ended), asyncio.Event()
        run, self._close = self.compose(self.life)
        self.starts += 1
        self._task = asyncio.ensure_future(run(self._stop))

    async def take_down(self) -> None:
        """Take it down: like a process that was killed if it is dead, else like one that was told to stop."""
        if self._task is None:
            return
        if self.life.has_ended():
            self.life.stop_asking()
            self.hang_up()
        self._stop.set()
        done, _ = await asyncio.wait({self._task}, timeout=1.5)
        if not done:
            self._task.cancel()
        self.life.bury()
        await asyncio.wait({self._task}, timeout=PATIENCE)
        self.hang_up()
        with contextlib.suppress(Gone, asyncio.CancelledError):
            self._task.result()
        self._task = None
        # What was frozen unwinds before the store is closed.
        await asyncio.sleep(0)
        await asyncio.to_thread(self._close)


@dataclass
class CrashWorld:
    """The federation, and what a journey may do in it."""

    folder: Path
    plan: Plan
    trust: TrustWorld
    live: LiveCoordinator
    state: StateFolder
    worker: CrashWorker
    clock: ShiftedClock = field(default_factory=ShiftedClock)
    agent: Agent = field(init=False)
    coordinator_side: Side = field(init=False)
    node_side: Side = field(init=False)
    logs: list[Any] = field(default_factory=list)
    # Whether the node's clock is left alone while a test waits.
    in_real_time: bool = False
    _retired: list[grpc.aio.Channel] = field(default_factory=list)
    _attendants: list[asyncio.Task[None]] = field(default_factory=list)

    # --- the two processes ---------------------------------------------------

    def compose_coordinator(
        self, life: InProcessLife
    ) -> tuple[Callable[[asyncio.Event], Awaitable[None]], Callable[[], None]]:
        opened = open_foundation(self.folder / "coordinator", self.live.clock)
        store = CrashingCoordinatorStore(opened.database, self.plan, life)
        foundation = replace(opened, database=store)
        self._take_over(foundation)
        return (lambda stop: run_coordinator(foundation, stop)), store.close

    def _take_over(self, foundation: Foundation) -> None:
        self.live.foundation = foundation
        self._retired += self.live.channels
        self.live.channels.clear()
        self.live.channel("people")

    def compose_node(
        self, life: InProcessLife
    ) -> tuple[Callable[[asyncio.Event], Awaitable[None]], Callable[[], None]]:
        store = CrashingNodeStore(NodeDatabase.open(self.state.database), self.plan, life)
        config = AgentConfig(federation=FEDERATION, node=NODE, node_endpoint=self.live.address("node"))
        self.agent = Agent(self.state, config, PolicyBook(self.state.policy_file), store, RunQueue(self.worker.enqueue))
        return self.agent.run, store.close

    async def at_node(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in the node's store, around its crash points: for a test to look into it."""
        return await self._in_store(lambda: cast("CrashingNodeStore", self.agent._database).inner, work)

    async def at_coordinator(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in the coordinator's store, around its crash points."""
        return await self._in_store(lambda: cast("CrashingCoordinatorStore", self.live.foundation.database).inner, work)

    async def _in_store(self, store: Callable[[], Any], work: Callable[[Session], T]) -> T:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return cast("T", await store().run(work))
                except RuntimeError:
                    # Closed: its process is being started again.
                    await asyncio.sleep(_POLL)

    async def attend(self, side: Side) -> None:
        """Start ``side`` again whenever it has died."""
        while True:
            await side.ended.wait()
            await side.take_down()
            side.ended.clear()
            side.start()

    def restart(self, side: Side) -> None:
        """Have ``side`` stopped, in good order, and started again."""
        side.ended.set()

    def serial(self) -> int:
        """Return the serial number of the node's certificate."""
        return load_credential(self.state).certificate.serial_number

    def token_of(self, node: str, answer: Any) -> str:
        """Return the invitation of ``node`` as the operator's client makes it."""
        fingerprint = self.live.foundation.keys.server_ca.fingerprint
        return Invitation(NodeId(node), answer.secret, fingerprint, answer.endpoint, self.live.root_digest).token()

    # --- what people and operators do ------------------------------------------

    async def insist(self, call: Callable[[], Awaitable[T]], *, done: frozenset[Reason] = frozenset()) -> T | None:
        """Make the same call until it is answered, as people do; None for a refusal that says it was done before."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await asyncio.wait_for(call(), CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    reason, away = reason_of(error), error.code() in _AWAY_CODES
                    if reason not in done and not away:
                        raise
                except HansaError as error:
                    reason, away = error.reason, error.reason in _AWAY
                    if reason not in done and not away:
                        raise
                if reason in done:
                    return None
                await asyncio.sleep(_POLL)

    async def local(self, method: str, *arguments: Any, done: frozenset[Reason] = frozenset(), **named: Any) -> Any:
        """Insist on a call of the agent's local API."""
        call = getattr(LocalClient(self.state), method)
        return await self.insist(lambda: asyncio.to_thread(call, *arguments, **named), done=done)

    async def until(self, true: Callable[[], Awaitable[bool]], what: str) -> None:
        """Return once ``true`` holds, and let time pass for the node's leases meanwhile."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while not await self._holds(true):
            waited = loop.time() - begun
            if waited > PATIENCE:
                raise AssertionError(f"not within {PATIENCE:.0f} s: {what}; {self.logs[-12:]}")
            if waited > 0.8 and not self.worker.is_busy and not self.in_real_time:
                self._hurry()
                await asyncio.sleep(10 * _POLL)
            await asyncio.sleep(_POLL)

    async def _holds(self, true: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await true()
        except grpc.aio.AioRpcError:
            # Of a coordinator that is being started again.
            return False

    def _hurry(self) -> None:
        # In steps that the scheduler takes for time that has passed, not for a clock that has jumped.
        self.clock.shift += _STEP
        self.agent._bells.queue.set()

    async def aclose(self) -> None:
        """Stop everything."""
        for task in self._attendants:
            task.cancel()
        await asyncio.gather(*self._attendants, return_exceptions=True)
        self.worker.runner.go.set()
        await self.node_side.take_down()
        await self.coordinator_side.take_down()
        await asyncio.to_thread(self.worker.close)
        await self.close_retired()
        for channel in self.live.channels:
            await channel.close()

    async def calm(self) -> None:
        """Let the node's clock be right again, and nobody die any more."""
        self.plan.disarm()
        self.worker.armed = ""
        self.clock.shift, self.in_real_time = timedelta(), False
        self.worker.is_deaf = False
        self.logs.clear()
        await self.close_retired()

    async def close_retired(self) -> None:
        """Close the channels to coordinators that are gone."""
        while self._retired:
            await self._retired.pop().close()

    async def open(self) -> None:
        """Start both, have the node join, its data holder approve and its dataset be offered."""
        self.coordinator_side, self.node_side = (
            Side(self.compose_coordinator),
            Side(self.compose_node, hang_up=_hang_up_local),
        )
        self.coordinator_side.start()
        self._attendants.append(asyncio.create_task(self.attend(self.coordinator_side)))
        async with asyncio.timeout(PATIENCE):
            await self.live.people.channel_ready()
        key = await self.live.join(NODE)
        credential = Credential(key.key_pem, key.certificate_pem.encode())
        await asyncio.to_thread(_furnish, self.state, self.trust, self.live, credential)
        self.node_side.start()
        self._attendants.append(asyncio.create_task(self.attend(self.node_side)))


class _TrackedServer(node_agent.bootstrap._Server):
    """The agent's local server, whose connections can be broken: uvicorn leaves them to the process's end."""

    there: ClassVar[list[_TrackedServer]] = []

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.there.append(self)


def _hang_up_local() -> None:
    for server in _TrackedServer.there:
        for connection in tuple(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def _furnish(state: StateFolder, trust: TrustWorld, live: LiveCoordinator, credential: Credential) -> None:
    write_durably(state.keys / SERVER_CA, live.root)
    store_credential(state, credential)
    write_durably(state.keys / "signing.key", pkcs8(trust.keys[NODE]))
    write_durably(state.keys / "agreement.key", pkcs8(trust.recipients[NODE]))
    state.trust.mkdir(mode=0o700, exist_ok=True)
    write_durably(state.trust / PINNED_ROOT, trust.root)
    config = AgentConfig(federation=FEDERATION, node=NODE, node_endpoint=live.address("node"))
    write_durably(state.config_file, config_text(config).encode())
    store_policy(state.policy_file, policy_of(policy(trust)))
    database = NodeDatabase.open(state.database)
    try:
        asyncio.run(database.run(lambda session: found_store(session, str(uuid4()))))
    finally:
        database.close()


@contextmanager
def _no_waits(clock: ShiftedClock) -> Iterator[None]:
    """Let the node come back at once and beat often, let the coordinator go at once, and give the node ``clock``."""
    jitter = SimpleNamespace(random=lambda: -0.9)
    with ExitStack() as stack:
        for where, name, value in (
            (node_agent.bootstrap, "random", jitter),
            (node_agent.bootstrap, "utc_now", clock),
            (node_agent.bootstrap, "_Server", _TrackedServer),
            (node_agent.link.session, "_SHORTEST_PAUSE", 0.02),
            # Nobody here is to be slowed down.
            (coordinator.bootstrap, "time", SimpleNamespace(monotonic=lambda: 1000.0 * time.monotonic())),
            (coordinator.config.Config, "grace", timedelta()),
            # The journeys move both clocks at once; who compares them in between would see one of them moved.
            (ClockWatch, "is_wrong", lambda _watch: False),
        ):
            stack.enter_context(patch.object(where, name, value))
        yield


@asynccontextmanager
async def crash_world(folder: Path, database: str = "") -> AsyncIterator[CrashWorld]:
    """Yield a federation of a coordinator and the node FI, which runs jobs."""
    people, enrolment, node = free_ports(3)
    config = make_config(
        federation=FEDERATION, people_port=people, enrolment_port=enrolment, node_port=node, database=database
    )
    clock = ShiftedClock()
    trust = job_trust(clock(), (NODE,))
    place = folder / "coordinator"
    found(Founding(place, config, trust.files, trust_keys(trust)), store_uuid=str(uuid4()), now=clock())
    state = create_state_folder(folder / "node")
    # Replaced by the side's own composition.
    foundation = open_foundation(place, clock)
    foundation.database.close()
    live = LiveCoordinator(foundation, clock, trust, asyncio.Event())
    world = CrashWorld(folder, Plan(), trust, live, state, CrashWorker(state.socket, collected()))
    with _no_waits(world.clock), structlog.testing.capture_logs() as world.logs:
        try:
            await world.open()
            yield world
        finally:
            await world.aclose()
