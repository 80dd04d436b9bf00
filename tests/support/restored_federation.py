"""What operators do with backups, copies and certificates of a local federation, as the runbooks say."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.ca.authority import Authority, Window, issue_node
from deploy.local.cast import OPERATOR, RESEARCHER, SECOND_OPERATOR
from deploy.local.commands import BIN, environment
from deploy.local.layout import FEDERATION
from deploy.local.processes import Daemon, stop, wait_until
from hansa.contract.errors import HansaError
from node_agent.config import StateFolder
from node_agent.keys.credential import Credential, load_credential, store_credential
from node_agent.local_api.client import AgentClient
from tests.support.hansa_command import Ended as ShortEnded
from tests.support.hansa_command import hansa
from tests.support.local_federation import Ended, Federation

PATIENCE: Final = 300.0
_POLL: Final = 0.5
_JOB: Final = ("--param", "variants=rs12913832", "--deadline", "30m")


def eventually(condition: Callable[[], object], what: str) -> None:
    """Return once ``condition`` holds; fail after a patience that a machine under load does not use up."""
    assert wait_until(lambda: bool(condition()), PATIENCE, _POLL), f"not within {PATIENCE:.0f} s: {what}"


@dataclass(frozen=True, slots=True)
class Operators:
    """The operators of a federation and of its nodes, at work."""

    federation: Federation
    nodes: tuple[str, ...]

    def hansa(self, *arguments: str, person: str = RESEARCHER) -> ShortEnded:
        """Run ``hansa`` within this process: what is asked again and again shall not load the machine."""
        return hansa(*arguments, "--output", "json", profile=self.federation.layout.profile(person))

    # --- daemons ------------------------------------------------------------------

    def start(self, daemon: Daemon) -> None:
        """Start a daemon."""
        daemon.start(self.federation.layout.root, {**environment(), "HANSA_DEBUG": "1"})

    def stop_node(self, node: str) -> None:
        """Stop a node's worker and its agent."""
        files = self.federation.layout.node(node)
        stop([files.worker])
        stop([files.agent])

    def stop_coordinator(self) -> None:
        """Stop the coordinator."""
        stop([self.federation.layout.coordinator])

    def start_coordinator(self) -> None:
        """Start the coordinator, and wait until all nodes are attached."""
        self.start(self.federation.layout.coordinator)
        self.wait_for_nodes()

    def start_all(self) -> None:
        """Start what does not run, whatever became of a test before."""
        layout = self.federation.layout
        daemons = [layout.coordinator]
        daemons += [one for node in self.nodes for one in (layout.node(node).agent, layout.node(node).worker)]
        for daemon in daemons:
            if daemon.running() is None:
                self.start(daemon)

    def wait_for_nodes(self) -> None:
        """Wait until the coordinator calls every node connected."""
        eventually(lambda: self.connected() == set(self.nodes), "all nodes are connected")

    def connected(self) -> set[str]:
        """Return the nodes that are connected; none while the coordinator does not answer."""
        return {name for name, node in self.known_nodes().items() if node["connected"]}

    def known_nodes(self) -> dict[str, dict[str, Any]]:
        """Return what `hansa nodes list` says of each; nothing while the coordinator does not answer."""
        ended = self.hansa("nodes", "list", person=OPERATOR)
        return {} if ended.code else {str(node["node"]): node for node in ended.document["nodes"]}

    def status(self, node: str) -> dict[str, Any]:
        """Return what `hansa-node status` says; nothing while the agent does not answer."""
        with suppress(HansaError):
            return AgentClient(StateFolder(self.federation.layout.node(node).state)).status()
        return {}

    # --- backups ------------------------------------------------------------------

    def back_node_up(self, node: str, folder: Path) -> None:
        """Make a backup of a node, whose agent runs."""
        _done(self.federation.at_node(node, "backup", str(folder)))
        _done(self.federation.at_node(node, "restore", str(folder), "--verify"))

    def restore_node(self, node: str, folder: Path) -> None:
        """Restore a node from a backup: steps 1 to 3 of its runbook."""
        self.stop_node(node)
        _done(self.federation.at_node(node, "restore", str(folder)))
        self.federation.restart_node(node)
        eventually(lambda: self.status(node).get("reason") == "NODE_QUARANTINED", f"{node} says that it is set apart")

    def reconcile(self, node: str) -> None:
        """Have two operators say that a node was restored: step 4."""
        first = self.federation.hansa("admin", "node", "reconcile", node, person=OPERATOR)
        assert (first.code, first.reason) == (1, "PENDING_SECOND"), first.err
        _done(self.federation.hansa("admin", "node", "reconcile", node, person=SECOND_OPERATOR))
        eventually(lambda: self.status(node).get("state") == "ONLINE", f"{node} is online")

    def back_coordinator_up(self, folder: Path) -> None:
        """Make a backup of the coordinator, which serves."""
        self.coordinator("backup", str(self.federation.layout.coordinator_state), str(folder))
        self.coordinator("restore", str(folder), "--verify")

    def restore_coordinator(self, folder: Path) -> None:
        """Restore the coordinator from a backup: steps 1 to 3 of its runbook."""
        self.stop_coordinator()
        self.coordinator("restore", str(folder), str(self.federation.layout.coordinator_state))
        self.start_coordinator()

    def coordinator(self, *arguments: str) -> None:
        """Run `hansa-coordinator`; fail unless it is done."""
        command = [str(BIN / "hansa-coordinator"), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stdout + done.stderr

    def accept_log(self, node: str) -> None:
        """Let a node's operator take the restored coordinator's log over: step 6."""
        eventually(lambda: self.status(node).get("log_alarm"), f"{node} alarms")
        _done(self.federation.at_node(node, "audit", "accept-coordinator-log", "--reason", "It was restored."))

    # --- a copy of a node ------------------------------------------------------------

    @contextmanager
    def copy_of(self, node: str, folder: Path) -> Iterator[Path]:
        """Run a copy of a node's state beside the node: a second agent and worker with its identity."""
        files = self.federation.layout.node(node)
        self.stop_node(node)
        shutil.copytree(files.state, folder / "state", ignore=shutil.ignore_patterns("*.sock", "*.lock", "*.pid"))
        (folder / "state").chmod(files.state.stat().st_mode & 0o7777)
        program = (str(BIN / "hansa-node"), "--state", str(folder / "state"))
        agent = Daemon((*program, "run"), folder / "agent.pid", folder / "agent.log")
        worker = Daemon((*program, "worker"), folder / "worker.pid", folder / "worker.log")
        self.federation.restart_node(node)
        self.start(agent)
        self.start(worker)
        try:
            yield folder / "state"
        finally:
            stop([worker])
            stop([agent])

    def is_apart(self, node: str) -> bool:
        """Say whether the coordinator has set a node apart."""
        return bool(self.known_nodes().get(node, {}).get("state") == "QUARANTINED")

    def come_back(self, node: str, backup: Path) -> None:
        """Bring a node back whose history is not the coordinator's: a backup of what is there is restored."""
        self.back_node_up(node, backup)
        self.restore_node(node, backup)
        self.reconcile(node)

    # --- certificates ------------------------------------------------------------------

    def let_certificate_end(self, node: str) -> None:
        """Have a node's certificate be one that ended an hour ago, and the agent know only that one."""
        layout = self.federation.layout
        stop([layout.node(node).agent])
        state = StateFolder(layout.node(node).state)
        held = load_credential(state)
        key = serialization.load_pem_private_key(held.key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        ca = _node_ca(layout.coordinator_state / "ca")
        window = Window(datetime.now(UTC) - timedelta(hours=2), timedelta(hours=1))
        ended = issue_node(ca, key.public_key(), federation=FEDERATION, node=node, window=window)
        store_credential(state, Credential(held.key_pem, ended.public_bytes(serialization.Encoding.PEM)))
        self.start(layout.node(node).agent)

    def enrol_again(self, node: str) -> None:
        """Give a node a new certificate, as the runbook says."""
        words = ("admin", "node", "invite", node, "--again")
        first = self.federation.hansa(*words, person=OPERATOR)
        assert (first.code, first.reason) == (1, "PENDING_SECOND"), first.err
        token = str(_done(self.federation.hansa(*words, person=SECOND_OPERATOR)).document["token"])
        enrolled = _done(self.federation.at_node(node, "enrol", "--again", token, "--output", "json")).document
        confirmed = ("admin", "node", "confirm", node, "--fingerprint", str(enrolled["key_fingerprint"]))
        _done(self.federation.hansa(*confirmed, person=OPERATOR))

    # --- jobs ------------------------------------------------------------------------

    def submit(self) -> str:
        """Ask a job of every node, once each can be asked; return its id."""
        return self.federation.submit(*self._question())

    def _question(self) -> tuple[str, ...]:
        return (*(word for node in self.nodes for word in ("--dataset", f"{node}-aisnp")), *_JOB)

    def submit_if_possible(self) -> list[str]:
        """Ask a job of every node; return its id, or nothing if a node's datasets are not known at the moment."""
        asked = self.federation.hansa("job", "submit", "allele-frequency", *self._question())
        return [str(asked.document["job_id"])] if asked.code == 0 else []

    def completed(self, job_id: str) -> dict[str, Any]:
        """Wait until a job is completed; return its result."""
        eventually(partial(self._is_completed, job_id), f"job {job_id} is completed")
        return _done(self.federation.hansa("job", "result", job_id)).document

    def _is_completed(self, job_id: str) -> bool:
        shown = self.hansa("job", "show", job_id)
        return shown.code == 0 and bool(shown.document["state"] == "COMPLETED")

    def proven(self, *job_ids: str) -> None:
        """Wait until everything holds that jobs' results rest on: the newest entries are witnessed a little later."""
        for job_id in job_ids:
            eventually(partial(self._holds, job_id), f"the proof of job {job_id} holds")

    def _holds(self, job_id: str) -> bool:
        return self.hansa("job", "verify", job_id).code == 0

    def run_of(self, job_id: str, node: str) -> str:
        """Return the run of a job at a node."""
        return next(str(run["run_id"]) for run in self.federation.job(job_id)["nodes"] if run["node"] == node)


def _done(ended: Ended) -> Ended:
    assert ended.code == 0, ended.out + ended.err
    return ended


def _node_ca(folder: Path) -> Authority:
    key = serialization.load_pem_private_key((folder / "node-ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Authority(x509.load_pem_x509_certificate((folder / "node-ca.pem").read_bytes()), key)
