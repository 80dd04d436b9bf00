"""The public commands, called as their users call them.

Nothing here reaches behind a command: what a local federation can do, an
institution's operator can do by hand with the same words.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.layout import (
    FEDERATION,
    OPERATOR,
    REPOSITORY,
    RESEARCHER,
    Layout,
    LocalFederationError,
    NodeLayout,
)

BIN: Final = REPOSITORY / ".venv" / "bin"
ANALYSIS_FOLDER: Final = REPOSITORY / "node_agent" / "analyses" / "allele_frequency"
ANALYSIS: Final = "allele-frequency@1.0"

_COMMAND_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Dataset:
    """A VCF with its samples file, and the id that it gets at its node."""

    name: str
    vcf: Path
    samples: Path


class CommandError(LocalFederationError):
    """A public command ended with a failure; the text holds what it said."""


def environment() -> dict[str, str]:
    """Return our environment with the venv first and no Hansa setting of the caller's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HANSA_")}
    return {**kept, "PATH": f"{BIN}:{kept.get('PATH', '/usr/bin:/bin')}", "PYTHONUNBUFFERED": "1"}


def call(program: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a public command to its end and return what it printed.

    Raises:
        CommandError: it failed.
    """
    done = subprocess.run(
        [str(BIN / program), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**environment(), **(env or {})},
        timeout=_COMMAND_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()) or f"exit code {done.returncode}"
        raise CommandError(f"`{program} {' '.join(arguments[:4])} …` failed: {said}")
    return done.stdout


class People:
    """What the operator and the researcher do, with `hansa`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def create_keys(self) -> None:
        """Make both people's keys."""
        self._layout.keys.mkdir(mode=0o700)
        for person in (OPERATOR, RESEARCHER):
            call("hansa", "key", "create", str(self._layout.key(person)))

    def write_profiles(self) -> None:
        """Write both people's profiles, as the coordinator's command gives them."""
        for person in (OPERATOR, RESEARCHER):
            key = str(self._layout.key(person))
            state = str(self._layout.coordinator_state)
            text = call("hansa-coordinator", "profile", state, "--person", person, "--key", key)
            self._layout.profile(person).write_text(text)

    def add_researcher(self) -> None:
        """Register the researcher."""
        public = f"{self._layout.key(RESEARCHER)}.pub"
        self._admin("person", "add", RESEARCHER, "--role", "researcher", "--key", public)

    def publish_analysis(self) -> None:
        """Publish the analysis that Hansa ships."""
        self._admin("analysis", "publish", str(ANALYSIS_FOLDER))

    def invite(self, node: str) -> str:
        """Return an invitation token for a node."""
        return str(self._admin("node", "invite", node)["token"])

    def confirm(self, node: str, fingerprint: str) -> None:
        """Confirm a node whose key has this fingerprint."""
        self._admin("node", "confirm", node, "--fingerprint", fingerprint)

    def nodes(self) -> list[dict[str, Any]]:
        """Return what `hansa nodes list` says."""
        return list(self._hansa("nodes", "list")["nodes"])

    def datasets(self) -> list[dict[str, Any]]:
        """Return what `hansa datasets list` says."""
        return list(self._hansa("datasets", "list")["datasets"])

    def _admin(self, *arguments: str) -> dict[str, Any]:
        return self._hansa("admin", *arguments)

    def _hansa(self, *arguments: str) -> dict[str, Any]:
        profile = {"HANSA_PROFILE": str(self._layout.profile(OPERATOR))}
        answer: dict[str, Any] = json.loads(call("hansa", *arguments, "--output", "json", env=profile))
        return answer


class NodeOperator:
    """What a node's operator does, with `hansa-node`."""

    def __init__(self, node: NodeLayout) -> None:
        self._node = node

    def make(self) -> None:
        """Make the node's profile, state folder and policy.

        The policy admits the researcher and the one analysis, and releases
        what passes the disclosure check without a person.
        """
        self._node.folder.mkdir(parents=True)
        self._node.profile.write_text(f"state = {json.dumps(str(self._node.state))}\n")
        self.call("init")
        self.call("policy", "allow", "analysis", ANALYSIS)
        self.call("policy", "allow", "submitter", RESEARCHER)
        self.call("policy", "set", "release", "auto")

    def enrol(self, token: str) -> str:
        """Make the node's key, fetch its certificate, and return the key's fingerprint."""
        answer = json.loads(self.call("enrol", token, "--output", "json"))
        return str(answer["key_fingerprint"])

    def add_dataset(self, dataset: Dataset) -> None:
        """Take a VCF in as a dataset."""
        self.call("dataset", "add", dataset.name, "--vcf", str(dataset.vcf), "--samples", str(dataset.samples))

    def status(self) -> str:
        """Return how the agent stands; an error while it does not run."""
        return self.call("status")

    def call(self, *arguments: str) -> str:
        """Run `hansa-node` for this node and return what it printed."""
        return call("hansa-node", "--profile", str(self._node.profile), *arguments)


def init_coordinator(layout: Layout, ports: tuple[int, int, int]) -> None:
    """Make the coordinator's state, with our operator as its first person."""
    people, enrolment, node = (str(port) for port in ports)
    call(
        "hansa-coordinator",
        "init",
        str(layout.coordinator_state),
        "--federation",
        FEDERATION,
        "--operator",
        OPERATOR,
        "--operator-key",
        f"{layout.key(OPERATOR)}.pub",
        "--people-port",
        people,
        "--enrolment-port",
        enrolment,
        "--node-port",
        node,
    )
