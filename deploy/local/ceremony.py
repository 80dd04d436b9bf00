"""The trust repository of a local federation, made by the public commands alone.

What takes national operators a day in a room (docs/runbooks/key-ceremony.md)
takes a script a few seconds; the order and the commands are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.local.cast import (
    AUTHOR,
    LOG,
    RESEARCHER,
    REVIEWERS,
    ROOT_SIGNERS,
    SNAPSHOT,
    TARGETS_SIGNERS,
    THRESHOLD,
    TIMESTAMP,
    Member,
    folder_of,
    members,
)
from deploy.local.commands import ANALYSIS_FOLDER, analysis_of, call
from deploy.local.layout import FEDERATION, Layout

PROJECT: Final = "demo"
_PROJECT_DAYS: Final = 365


class Ceremony:
    """The off-line side of the federation: keys, directory, analyses, signatures."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._repository = str(layout.repository)

    def create_keys(self, nodes: Sequence[str]) -> None:
        """Make every key of the federation, each role's in a folder of its own."""
        people = [member.name for member in members(nodes)]
        names = [*ROOT_SIGNERS, *TARGETS_SIGNERS, SNAPSHOT, TIMESTAMP, LOG, *people]
        self._layout.keys.mkdir(mode=0o700)
        for folder in sorted({folder_of(name) for name in names}):
            (self._layout.keys / folder).mkdir(mode=0o700)
        call("hansa", "key", "create", *(str(self._layout.key(name)) for name in names))
        call("hansa", "key", "create", "--recipient", str(self._layout.recipient_key(RESEARCHER)))

    def found(
        self, nodes: Sequence[str], datasets: Sequence[str], analyses: Sequence[Path] = (ANALYSIS_FOLDER,)
    ) -> None:
        """Make the first version of the repository, signed by its thresholds.

        Args:
            nodes: the nodes to come; their keys are added once they have them.
            datasets: ``NODE/DATASET`` of the one project.
            analyses: the folders of the project's analyses.
        """
        public = self._layout.public_key
        signers = [
            *(word for name in ROOT_SIGNERS for word in ("--root-key", str(public(name)))),
            *(word for name in TARGETS_SIGNERS for word in ("--targets-key", str(public(name)))),
            *("--root-threshold", str(THRESHOLD), "--targets-threshold", str(THRESHOLD)),
        ]
        online = [
            *("--snapshot-key", str(public(SNAPSHOT))),
            *("--timestamp-key", str(public(TIMESTAMP))),
            *("--log-key", str(public(LOG))),
        ]
        self._trust("init", "--federation", FEDERATION, *signers, *online)
        people = self._layout.keys / "people.toml"
        people.write_text("".join(self._entry(member) for member in members(nodes)))
        self._trust("add-people", str(people))
        scope = [word for dataset in datasets for word in ("--dataset", dataset)]
        used = [word for folder in analyses for word in ("--analysis", analysis_of(folder))]
        self._trust("add-project", PROJECT, "--researcher", RESEARCHER, *scope, *used, "--valid", f"{_PROJECT_DAYS}d")
        for folder in analyses:
            self._review(folder)
        self._sign(*ROOT_SIGNERS[:THRESHOLD], *TARGETS_SIGNERS[:THRESHOLD])

    def _entry(self, member: Member) -> str:
        values = {
            "name": member.name,
            "organisation": member.organisation,
            "key": str(self._layout.public_key(member.name)),
            "roles": list(member.roles),
            "nodes": list(member.nodes),
        }
        if member.name == RESEARCHER:
            values["recipient_key"] = f"{self._layout.recipient_key(RESEARCHER)}.pub"
        # JSON's strings and lists of strings are TOML's too.
        return "\n".join(["[[person]]", *(f"{name} = {json.dumps(value)}" for name, value in values.items()), ""])

    def _review(self, folder: Path) -> None:
        self._layout.bundles.mkdir(exist_ok=True)
        bundle = str(self._layout.bundles / analysis_of(folder))
        author = ["--person", AUTHOR, "--key", str(self._layout.key(AUTHOR))]
        call("hansa", "analysis", "build", str(folder), *author, "--to", bundle)
        for name in REVIEWERS:
            reviewer = ["--person", name, "--key", str(self._layout.key(name))]
            call("hansa", "analysis", "review", bundle, *reviewer, "--approve", "--comment", "Counts only.")
        call("hansa", "analysis", "publish", bundle, "--repo", self._repository)

    def add_nodes(self, nodes: Sequence[str]) -> None:
        """Take the nodes' cards into the directory as nodes and witnesses, and sign that."""
        for name in nodes:
            card = str(self._layout.node(name).card)
            self._trust("add-node", "--card", card, "--organisation", f"biobank-{name.lower()}", "--witness")
        # Others than the first time: any two of the three will do.
        self._sign(*TARGETS_SIGNERS[-THRESHOLD:])

    def publish(self, profile: str) -> None:
        """Put the signed version in force at the coordinator."""
        call("hansa", "trust", "publish", self._repository, env={"HANSA_PROFILE": profile})

    def _sign(self, *names: str) -> None:
        for name in names:
            self._trust("sign", "--key", str(self._layout.key(name)))

    def _trust(self, verb: str, *arguments: str) -> None:
        call("hansa", "trust", verb, self._repository, *arguments)
