"""Where the parts of a local federation lie below its folder."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.cast import AUDITOR, OPERATOR, RESEARCHER, SECOND_OPERATOR, folder_of
from deploy.local.processes import Daemon

REPOSITORY: Final = Path(__file__).resolve().parents[2]
NODE_ID: Final = re.compile(r"[A-Z0-9][A-Z0-9-]{0,31}")

FEDERATION: Final = "demo.hansa.local"
# Who calls the coordinator.
PROFILED: Final = (OPERATOR, SECOND_OPERATOR, RESEARCHER, AUDITOR)


class LocalFederationError(Exception):
    """The federation cannot be started or stopped; the text is for the user."""


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """The files of one node."""

    name: str
    folder: Path

    @property
    def state(self) -> Path:
        """The node's state folder; only its agent opens it."""
        return self.folder / "state"

    @property
    def profile(self) -> Path:
        """What the node's operator passes to `hansa-node --profile`."""
        return self.folder / "profile.toml"

    @property
    def card(self) -> Path:
        """The node's public keys, as its operator hands them to the federation."""
        return self.folder / "card.json"

    @property
    def agent(self) -> Daemon:
        """The node's agent."""
        return self._daemon("agent", "run")

    @property
    def worker(self) -> Daemon:
        """The node's worker."""
        return self._daemon("worker", "worker")

    def _daemon(self, name: str, verb: str) -> Daemon:
        command = (str(REPOSITORY / ".venv/bin/hansa-node"), "--profile", str(self.profile), verb)
        return Daemon(command, self.folder / f"{name}.pid", self.folder / f"{name}.log")


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a federation. ``root`` is absolute."""

    root: Path

    @property
    def record(self) -> Path:
        """Written last: its presence says that the set-up was finished."""
        return self.root / "federation.json"

    @property
    def coordinator_state(self) -> Path:
        """The coordinator's state folder."""
        return self.root / "coordinator"

    @property
    def coordinator(self) -> Daemon:
        """The coordinator."""
        command = (str(REPOSITORY / ".venv/bin/hansa-coordinator"), "serve", str(self.coordinator_state))
        return Daemon(command, self.root / "coordinator.pid", self.root / "coordinator.log")

    @property
    def keys(self) -> Path:
        """The keys, a folder for each role."""
        return self.root / "keys"

    @property
    def repository(self) -> Path:
        """The working folder of the trust repository, with the off-line roles' metadata."""
        return self.root / "trust-repository"

    @property
    def bundles(self) -> Path:
        """The analysis bundles that were built and reviewed, by name and version."""
        return self.root / "bundles"

    @property
    def env(self) -> Path:
        """To be sourced by a shell."""
        return self.root / "env"

    @property
    def owned(self) -> tuple[Path, ...]:
        """Everything that a set-up makes below ``root``, but the logs."""
        profiles = (self.profile(name) for name in PROFILED)
        folders = (self.coordinator_state, self.keys, self.repository, self.bundles, self.root / "nodes")
        return (self.record, self.env, *profiles, *folders)

    def key(self, person: str) -> Path:
        """Return where a person's private key lies."""
        return self.keys / folder_of(person) / f"{person}.key"

    def public_key(self, person: str) -> Path:
        """Return where a person's public key lies."""
        key = self.key(person)
        return key.with_name(f"{key.name}.pub")

    def recipient_key(self, person: str) -> Path:
        """Return where the private key lies that summaries may be sealed to."""
        return self.keys / folder_of(person) / f"{person}.recipient.key"

    def profile(self, person: str) -> Path:
        """Return a person's profile."""
        return self.root / f"{person}.toml"

    def node(self, name: str) -> NodeLayout:
        """Return the files of one node."""
        return NodeLayout(name, self.root / "nodes" / name)

    def nodes(self) -> tuple[NodeLayout, ...]:
        """Return the nodes of the finished set-up.

        Raises:
            LocalFederationError: there is none, or its record cannot be read.
        """
        try:
            names = json.loads(self.record.read_text())["nodes"]
            return tuple(self.node(name) for name in names)
        except FileNotFoundError as error:
            raise LocalFederationError(f"{self.root} holds no federation; start one with `make up`.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalFederationError(f"{self.record} cannot be read.") from error

    def present_nodes(self) -> tuple[NodeLayout, ...]:
        """Return the nodes that have a folder, whether or not the set-up was finished."""
        folder = self.root / "nodes"
        return tuple(self.node(path.name) for path in sorted(folder.iterdir())) if folder.is_dir() else ()

    def running(self) -> bool:
        """Say whether any daemon of the federation runs."""
        daemons = [self.coordinator, *(daemon for node in self.present_nodes() for daemon in (node.agent, node.worker))]
        return any(daemon.running() for daemon in daemons)

    def write_env(self) -> None:
        """Write the file that makes `hansa` ready in a shell."""
        bin_folder = shell_quoted(str(REPOSITORY / ".venv/bin"))
        profile = shell_quoted(str(self.profile(RESEARCHER)))
        self.env.write_text(
            "# Source this file: `hansa` is ready then, as the researcher.\n"
            f'export PATH={bin_folder}:"$PATH"\n'
            f"export HANSA_PROFILE={profile}\n"
        )

    def write_record(self, names: Sequence[str]) -> None:
        """Say that the set-up is finished."""
        self.record.write_text(json.dumps({"v": 1, "nodes": list(names)}) + "\n")


def coordinator_endpoint(layout: Layout) -> str:
    """Return where people reach the coordinator, from the operator's profile."""
    return str(tomllib.loads(layout.profile(OPERATOR).read_text())["endpoint"])


def node_names(text: str) -> tuple[str, ...]:
    """Return the names in ``text``, separated by commas.

    Raises:
        LocalFederationError: there is none, one stands twice, or one is no node's name.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or len(set(names)) != len(names) or not all(NODE_ID.fullmatch(name) for name in names):
        raise LocalFederationError(f"NODES={text!r}: give different names of A-Z, 0-9 and '-', separated by commas.")
    return names


def shell_quoted(text: str) -> str:
    """Return ``text`` as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"
