"""A federation of real processes, used through the public commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deploy.local.cast import checker_of
from deploy.local.commands import BIN, environment
from deploy.local.layout import REPOSITORY, Layout
from deploy.local.processes import wait_until

COUNTRIES: Final = ("GB", "FI", "ES", "IT")
PATIENCE: Final = 90.0
_POLL: Final = 0.2


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What it printed, as JSON."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def reason(self) -> str:
        """The reason of a refusal, from the command's one line of JSON on stderr."""
        return str(json.loads(self.err.strip().splitlines()[-1])["error"]["reason"])


@dataclass(slots=True)
class Federation:
    """A running local federation, and everything that its people were shown."""

    layout: Layout
    shown: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, root: Path, nodes: str, data: Path | None = None) -> Federation:
        """Start one in ``root``; raise if it does not start."""
        arguments = ["--nodes", nodes, *(["--data", str(data)] if data else [])]
        done = _federation("up", root, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return cls(Layout(root))

    def stop(self) -> None:
        """Stop it; raise if something of it is left."""
        done = _federation("down", self.layout.root)
        assert done.returncode == 0, done.stdout + done.stderr

    def restart_node(self, name: str) -> None:
        """Start a killed agent again."""
        done = _federation("node-restart", self.layout.root, "--node", name)
        assert done.returncode == 0, done.stdout + done.stderr

    def hansa(self, *arguments: str, person: str = "researcher") -> Ended:
        """Run ``hansa`` as a person, with JSON output."""
        env = {**environment(), "HANSA_PROFILE": str(self.layout.profile(person))}
        ended = _ended([str(BIN / "hansa"), *arguments, "--output", "json"], env)
        if person == "researcher":
            self.shown += [ended.out, ended.err]
        return ended

    def table(self, *arguments: str) -> str:
        """Run ``hansa`` as the researcher, with the output for people."""
        env = {**environment(), "HANSA_PROFILE": str(self.layout.profile("researcher"))}
        ended = _ended([str(BIN / "hansa"), *arguments], env)
        self.shown += [ended.out, ended.err]
        assert ended.code == 0, ended.err
        return ended.out

    def at_node(self, name: str, *arguments: str) -> Ended:
        """Run ``hansa-node`` for a node."""
        profile = str(self.layout.node(name).profile)
        return _ended([str(BIN / "hansa-node"), "--profile", profile, *arguments], environment())

    def decide(self, name: str, verb: str, run_id: str, why: str) -> Ended:
        """Let the output checker of a node release or withhold what waits, signed with their own key."""
        checker = checker_of(name)
        person = ("--person", checker, "--key", str(self.layout.key(checker)))
        return self.at_node(name, "airlock", verb, run_id, *person, "--reason", why)

    def submit(self, *arguments: str) -> str:
        """Submit a job of allele-frequency and return its id."""
        ended = self.hansa("job", "submit", "allele-frequency", *arguments)
        assert ended.code == 0, ended.err
        return str(ended.document["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return what ``hansa job show`` says."""
        ended = self.hansa("job", "show", job_id)
        assert ended.code == 0, ended.err
        return ended.document

    def run_state(self, job_id: str, node: str) -> str:
        """Return the state of a job's run at a node."""
        return next(str(run["state"]) for run in self.job(job_id)["nodes"] if run["node"] == node)

    def connected(self) -> set[str]:
        """Return the nodes that ``hansa nodes list`` calls connected."""
        return {str(node["node"]) for node in self.hansa("nodes", "list").document["nodes"] if node["connected"]}

    def runs_waiting_at(self, name: str) -> list[dict[str, Any]]:
        """Return what ``hansa-node airlock list`` shows."""
        ended = self.at_node(name, "airlock", "list", "--output", "json")
        assert ended.code == 0, ended.err
        return list(ended.document["runs"])


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return once ``condition`` holds; fail after the test's patience."""
    assert wait_until(condition, PATIENCE, _POLL), f"not within {PATIENCE:.0f} s: {what}"


def _federation(verb: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.local.federation", verb, "--dir", str(root), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY, env=dict(os.environ))


def _ended(command: list[str], env: dict[str, str]) -> Ended:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=200
    )
    return Ended(done.returncode, done.stdout, done.stderr)
