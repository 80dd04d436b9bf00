"""The public commands, called as their users call them.

Nothing here reaches behind a command: what a local federation can do, an
institution's operator can do by hand with the same words.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from deploy.local.cast import LOG, OPERATOR, RESEARCHER, SECOND_OPERATOR, SNAPSHOT, TIMESTAMP, holder_of
from deploy.local.layout import FEDERATION, PROFILED, REPOSITORY, Layout, LocalFederationError, NodeLayout

BIN: Final = REPOSITORY / ".venv" / "bin"
ANALYSIS_FOLDER: Final = REPOSITORY / "node_agent" / "analyses" / "allele_frequency"
ANALYSIS: Final = "allele-frequency@1.0"

_COMMAND_SECONDS: Final = 300
_APPROVED: Final = timedelta(days=180)


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


def analysis_of(folder: Path) -> str:
    """Return ``NAME@VERSION`` of the analysis in ``folder``."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return f"{manifest['name']}@{manifest['version']}"


class People:
    """What operators and the researcher do, with `hansa`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def write_profiles(self) -> None:
        """Write the profiles of who calls the coordinator, as its own command gives them."""
        for person in PROFILED:
            key = str(self._layout.key(person))
            state = str(self._layout.coordinator_state)
            text = call("hansa-coordinator", "profile", state, "--person", person, "--key", key)
            self._layout.profile(person).write_text(text)

    def invite(self, node: str) -> str:
        """Return an invitation token for a node, which two operators have to ask for."""
        words = ("admin", "node", "invite", node)
        try:
            self._hansa(*words)
        except CommandError as error:
            if "PENDING_SECOND" not in str(error):
                raise
        return str(self._hansa(*words, person=SECOND_OPERATOR)["token"])

    def confirm(self, node: str, fingerprint: str) -> None:
        """Confirm a node whose key has this fingerprint."""
        self._hansa("admin", "node", "confirm", node, "--fingerprint", fingerprint)

    def nodes(self) -> list[dict[str, Any]]:
        """Return what `hansa nodes list` says."""
        return list(self._hansa("nodes", "list")["nodes"])

    def datasets(self) -> list[dict[str, Any]]:
        """Return what `hansa datasets list` says."""
        return list(self._hansa("datasets", "list")["datasets"])

    def _hansa(self, *arguments: str, person: str = OPERATOR) -> dict[str, Any]:
        profile = {"HANSA_PROFILE": str(self._layout.profile(person))}
        answer: dict[str, Any] = json.loads(call("hansa", *arguments, "--output", "json", env=profile))
        return answer


class NodeOperator:
    """What a node's operator does, with `hansa-node`."""

    def __init__(self, node: NodeLayout) -> None:
        self._node = node

    def make(self, analyses: Sequence[Path] = (ANALYSIS_FOLDER,)) -> None:
        """Make the node's profile, state folder and policy.

        The policy admits the researcher and the analyses of these folders, and
        releases what passes the disclosure check without a person.
        """
        self._node.folder.mkdir(parents=True)
        self._node.profile.write_text(f"state = {json.dumps(str(self._node.state))}\n")
        self.call("init")
        for folder in analyses:
            self.call("policy", "allow", "analysis", analysis_of(folder))
        self.call("policy", "allow", "submitter", RESEARCHER)
        self.call("policy", "set", "release", "auto")

    def enrol(self, token: str) -> str:
        """Make the node's keys, fetch its certificate, write its card; return the TLS key's fingerprint."""
        answer = json.loads(self.call("enrol", token, "--output", "json"))
        self._node.card.write_text(self.call("card", "--output", "json"))
        return str(answer["key_fingerprint"])

    def pin_holder(self, key: Path) -> None:
        """Pin the key of the node's data holder in its policy."""
        self.call("policy", "allow", "data-holder", holder_of(self._node.name), "--key", str(key))

    def approve(self, datasets: Sequence[str], *, project: str, key: Path) -> None:
        """Give the data holder's standing approval to the one analysis for the one project."""
        person = ["--person", holder_of(self._node.name), "--key", str(key)]
        scope = [word for dataset in datasets for word in ("--dataset", dataset)]
        until = (datetime.now(UTC) + _APPROVED).date().isoformat()
        what = ["--project", project, "--analysis", ANALYSIS, "--until", until]
        self.call("approval", "add", *person, *what, *scope)

    def add_dataset(self, dataset: Dataset) -> None:
        """Take a VCF in as a dataset."""
        self.call("dataset", "add", dataset.name, "--vcf", str(dataset.vcf), "--samples", str(dataset.samples))

    def status(self) -> str:
        """Return how the agent stands; an error while it does not run."""
        return self.call("status")

    def trusted(self) -> bool:
        """Say whether the node has found itself, with its own keys, in the directory in force."""
        try:
            return bool(json.loads(self.call("status", "--output", "json"))["trust"]["listed"])
        except CommandError:
            return False

    def call(self, *arguments: str) -> str:
        """Run `hansa-node` for this node and return what it printed."""
        return call("hansa-node", "--profile", str(self._node.profile), *arguments)


def init_coordinator(layout: Layout, ports: tuple[int, int, int], database: str = "") -> None:
    """Make the coordinator's state on the signed trust repository.

    Args:
        layout: where.
        ports: of people, enrolment and nodes.
        database: the URL of a PostgreSQL; a file in the state folder when empty.
    """
    people, enrolment, node = (str(port) for port in ports)
    call(
        "hansa-coordinator",
        "init",
        str(layout.coordinator_state),
        "--federation",
        FEDERATION,
        "--trust",
        str(layout.repository),
        "--snapshot-key",
        str(layout.key(SNAPSHOT)),
        "--timestamp-key",
        str(layout.key(TIMESTAMP)),
        "--log-key",
        str(layout.key(LOG)),
        "--people-port",
        people,
        "--enrolment-port",
        enrolment,
        "--node-port",
        node,
        "--database",
        database,
    )
