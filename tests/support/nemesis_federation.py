"""The federation that the nemesis breaks: real daemons, each node in a network of its own, all started again.

It is set up by the public commands on the loopback, as `make up` does, then
stopped, moved to where it can be broken, and started there.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from coordinator.config import load_config
from deploy.local import federation as local
from deploy.local.commands import ANALYSIS_FOLDER, environment
from deploy.local.layout import Layout
from deploy.local.processes import Daemon, Process, stop
from hansa.sdk.profile import Profile, load_profile
from node_agent.config import StateFolder
from node_agent.execution.presence import node_name
from node_agent.local_api.client import AgentClient
from tests.support.nemesis_clocks import Clocks
from tests.support.nemesis_processes import Living, living
from tests.support.nemesis_proxy import ByteProxy, FrameProxy
from tests.support.nemesis_services import PostgresService, RabbitMqService, Service
from tests.support.nemesis_world import HUB, Network, at_node, mount_memory
from tests.support.postgres import Postgres
from tests.support.warm_commands import warm_commands

# The first is reached directly, the second through a proxy of bytes, the third through one of frames.
DIRECT, BYTES, FRAMES = NODES = ("GB", "FI", "ES")
SHORT, LONG = "allele-frequency", "patient-frequency"
_LONG_SECONDS: Final = 6
# Room for what a store keeps in reserve and wants free besides.
_STATE_MIB: Final = 384
_WATCH_SECONDS: Final = 0.2
# The control group of an execution.
_GROUP: Final = re.compile(r"/hansa/[0-9a-f]+/([0-9a-f]{32})-(\d+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A kind of process, and at which node; none for the coordinator's."""

    kind: str
    node: str = ""


NODE_PARTS: Final = ("agent", "worker", "run pool", "rule pool", "broker", "sandbox")


@dataclass(slots=True)
class Federation:
    """The daemons, their network, and who restarts them."""

    layout: Layout
    network: Network
    random: random.Random
    bytes_proxy: ByteProxy | None = None
    frame_proxy: FrameProxy | None = None
    # What moves the wall clocks of the coordinator's and the nodes' machines; None: they have this machine's.
    clocks: Clocks | None = None
    restarts: int = 0
    services: list[Service] = field(default_factory=list)

    # --- set-up -------------------------------------------------------------------

    @classmethod
    def build(cls, root: Path, data: Path, seed: int, *, postgres: Postgres | None, rabbit: bool) -> Federation:
        """Make the network and the federation; nothing of it runs yet.

        Args:
            root: the federation's folder.
            data: the demo data.
            seed: of what the federation itself draws.
            postgres: where the coordinator's database is to be; None: in its state folder.
            rabbit: the nodes use a RabbitMQ, instead of a Redis each.
        """
        found = cls(Layout(root), Network(NODES), random.Random(seed ^ 0x5EED))
        found.network.build()
        long = _long_analysis(root.parent / "long-analysis")
        database = "" if postgres is None else postgres.new_database()
        wish = local.Wish(",".join(NODES), data, analyses=(ANALYSIS_FOLDER, long), database=database)
        with warm_commands():
            local.up(found.layout, wish, lambda _text: None)
        local.down(found.layout)
        for folder in (found.layout.coordinator_state, *(found.layout.node(node).state for node in NODES)):
            mount_memory(folder, _STATE_MIB)
        if postgres is not None:
            found.services.append(PostgresService(postgres))
        if rabbit:
            found._use_rabbit()
        config = found.layout.coordinator_state / "coordinator.toml"
        config.write_text(f'host = "{HUB}"\nlisten = "0.0.0.0"\n{config.read_text()}')
        return found

    def _use_rabbit(self) -> None:
        server = RabbitMqService(HUB, NODES)
        self.services.append(server)
        server.start()
        for node in NODES:
            config = self.layout.node(node).state / "agent.toml"
            config.write_text(f"broker_url = {json.dumps(server.url(node))}\n{config.read_text()}")

    @property
    def rabbit(self) -> RabbitMqService | None:
        """The nodes' common RabbitMQ, if they use one."""
        return next((one for one in self.services if isinstance(one, RabbitMqService)), None)

    async def start(self) -> None:
        """Start the proxies and everything else."""
        port = self._node_port()
        self.bytes_proxy = await ByteProxy.listen(HUB, ("127.0.0.1", port))
        self.frame_proxy = await FrameProxy.listen(
            HUB, ("127.0.0.1", port), self.layout.coordinator_state, StateFolder(self.layout.node(FRAMES).state)
        )
        ports = {DIRECT: port, BYTES: self.bytes_proxy.port, FRAMES: self.frame_proxy.port}
        for node in NODES:
            _set_endpoint(self.layout.node(node).state / "agent.toml", f"{HUB}:{ports[node]}")
        self.start_daemons()

    def _node_port(self) -> int:
        return load_config(self.layout.coordinator_state).node_port

    async def listening(self, dead: Collection[int], most: float) -> bool:
        """Return True once another coordinator than the ``dead`` takes connections, False after ``most`` seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + most
        while loop.time() < until:
            pids = {process.pid for process in self.processes(Part("coordinator"))}
            with suppress(OSError):
                if pids and not pids & set(dead):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._node_port())
                    writer.transport.abort()
                    return True
            await asyncio.sleep(_WATCH_SECONDS / 4)
        return False

    def start_daemons(self) -> None:
        """Start what does not run."""
        for name, daemon in self.daemons().items():
            if daemon.running() is None:
                self._start(name, daemon)

    def _start(self, name: str, daemon: Daemon) -> None:
        # "agent FI" and "worker FI" live on the machine FI.
        clock = self.clocks.environment(name.rpartition(" ")[2]) if self.clocks else {}
        daemon.start(self.layout.root, {**environment(), **clock, "HANSA_DEBUG": "1"})

    async def watch_over(self) -> None:
        """Start again whatever has ended, as an init system does; until cancelled."""
        while True:
            for name, daemon in self.daemons().items():
                if daemon.running() is None:
                    self.restarts += 1
                    await asyncio.sleep(self.random.uniform(0.0, 0.5))
                    self._start(name, daemon)
            for service in self.services:
                if not service.running():
                    self.restarts += 1
                    await asyncio.to_thread(service.start)
            await asyncio.sleep(_WATCH_SECONDS)

    def stop_daemons(self) -> None:
        """Stop everything in order, as `make down` does."""
        daemons = self.daemons()
        stop(daemon for name, daemon in daemons.items() if name.startswith("worker"))
        stop(daemon for name, daemon in daemons.items() if name.startswith("agent"))
        stop([daemons["coordinator"]])

    async def close(self) -> None:
        """Stop everything."""
        self.stop_daemons()
        local.down(self.layout)
        for service in self.services:
            service.stop()
        for node in NODES:
            _remove_groups(node_name(self.layout.node(node).state))
        if self.bytes_proxy is not None:
            await self.bytes_proxy.close()
        if self.frame_proxy is not None:
            await self.frame_proxy.close()

    # --- its parts ------------------------------------------------------------------

    def daemons(self) -> dict[str, Daemon]:
        """Return what is to be kept running, by name."""
        found = {"coordinator": self.layout.coordinator}
        for node in NODES:
            files = self.layout.node(node)
            found[f"agent {node}"] = _within(node, files.agent)
            found[f"worker {node}"] = _within(node, files.worker)
        return found

    def processes(self, part: Part) -> list[Process]:
        """Return the living processes of a kind."""
        if part.kind in {"coordinator", "agent", "worker"}:
            running = self.daemons()[f"{part.kind} {part.node}".strip()].running()
            return [running] if running else []
        if not part.node:
            return [each for service in self.services if service.name == part.kind for each in service.processes()]
        state = self.layout.node(part.node).state
        return [each.process for each in living() if _is(part.kind, each, state)]

    def run_processes(self, run_id: str) -> list[int]:
        """Return the processes in control groups of a run, at whatever node."""
        return [each.pid for each in living() if f"/{run_id}-" in each.groups]

    def executions(self, node: str) -> set[tuple[str, int]]:
        """Return the executions of which processes live at a node: run and number."""
        family = f"/hansa/{node_name(self.layout.node(node).state)}/"
        named = (_GROUP.search(each.groups) for each in living() if family in each.groups)
        return {(found[1], int(found[2])) for found in named if found}

    def agent(self, node: str) -> AgentClient:
        """Return a client of a node's agent."""
        return AgentClient(StateFolder(self.layout.node(node).state))

    def profile(self, person: str) -> Profile:
        """Return a person's profile."""
        return load_profile(self.layout.profile(person))

    def logs(self) -> dict[str, Path]:
        """Return the daemons' logs by name."""
        return {name: daemon.log_file for name, daemon in self.daemons().items()}


def _is(kind: str, process: Living, state: Path) -> bool:
    if kind == "broker":
        cwd = Path(f"/proc/{process.pid}/cwd")
        with suppress(OSError):
            return "redis-server" in process.command and cwd.readlink() == state / "broker"
        return False
    if kind == "sandbox":
        return f"/hansa/{node_name(state)}/" in process.groups
    pool = {"run pool": "runs", "rule pool": "rules"}[kind]
    return f"node_agent.execution.worker {state} {pool} " in process.command


def _within(node: str, daemon: Daemon) -> Daemon:
    return replace(daemon, command=(*at_node(node), *daemon.command))


def _set_endpoint(config: Path, endpoint: str) -> None:
    text = re.sub(r"(?m)^node_endpoint = .*$", f"node_endpoint = {json.dumps(endpoint)}", config.read_text())
    config.write_text(text)


def _long_analysis(folder: Path) -> Path:
    """Return the folder of an analysis that counts as the short one does, after a rest."""
    shutil.copytree(ANALYSIS_FOLDER, folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{SHORT}"', f'"{LONG}"', 1))
    snakefile = folder / "Snakefile"
    counting = '"OPENBLAS_NUM_THREADS=1 '
    text = snakefile.read_text()
    assert counting in text
    snakefile.write_text(text.replace(counting, f'"sleep {_LONG_SECONDS}; OPENBLAS_NUM_THREADS=1 ', 1))
    return folder


def _remove_groups(node: str) -> None:
    """Remove the control groups of a node of ours, which nobody is in any more."""
    for family in Path("/sys/fs/cgroup").glob("**/hansa"):
        folder = family / node
        for each in (*folder.glob("*/"), folder):
            with suppress(OSError):
                each.rmdir()
