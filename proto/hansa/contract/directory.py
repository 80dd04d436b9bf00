"""The directory: who belongs to the federation, with which keys and rights.

One JSON file, a target of the trust repository, so that a threshold of the
federation's national operators has signed it. Every party reads its own
verified copy and believes no other word on who somebody is.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, Field, model_validator

from hansa.contract.errors import Reason
from hansa.contract.ids import (
    ANALYSIS_NAME,
    ANALYSIS_VERSION,
    DATASET_ID,
    FEDERATION_NAME,
    NODE_ID,
    ORGANISATION,
    PERSON_NAME,
    PROJECT_NAME,
)
from hansa.contract.raw_keys import RAW_KEY
from hansa.contract.strict import Strict, parse_strict, pattern

DIRECTORY_BYTES: Final = 4 << 20
# The key id of the coordinator's log key in signed notes; no person or node can have this name.
COORDINATOR: Final = "_coordinator"

Key = Annotated[str, pattern(RAW_KEY)]
NodeName = Annotated[str, pattern(NODE_ID.pattern)]
PersonName = Annotated[str, pattern(PERSON_NAME.pattern)]
Organisation = Annotated[str, pattern(ORGANISATION.pattern)]


class Role(enum.StrEnum):
    """What a person may do; wire format."""

    RESEARCHER = "researcher"
    REVIEWER = "reviewer"
    DATA_HOLDER = "data-holder"  # approves jobs at the nodes of ``nodes``
    NODE_OPERATOR = "node-operator"  # of ``nodes``
    OUTPUT_CHECKER = "output-checker"  # of ``nodes``
    FEDERATION_OPERATOR = "federation-operator"
    AUDITOR = "auditor"  # reads, changes nothing


class DirectoryPerson(Strict):
    """A person. ``recipient_key`` is what summaries are sealed to."""

    name: PersonName
    organisation: Organisation
    signing_key: Key
    recipient_key: Key | None = None
    roles: tuple[Role, ...] = Field(min_length=1)
    nodes: tuple[NodeName, ...] = ()

    def has(self, role: Role, node: str = "") -> bool:
        """Say whether the person has ``role``; with ``node``, at that node."""
        return role in self.roles and (not node or node in self.nodes)


class DirectoryNode(Strict):
    """A node: what it signs releases with, and what is sealed to it."""

    node: NodeName
    organisation: Organisation
    signing_key: Key
    agreement_key: Key


class DirectoryProject(Strict):
    """A permission scope. ``datasets`` are ``NODE/DATASET``, ``analyses`` are ``name@version``."""

    project: Annotated[str, pattern(PROJECT_NAME.pattern)]
    researchers: tuple[PersonName, ...]
    datasets: tuple[Annotated[str, pattern(f"{NODE_ID.pattern}/{DATASET_ID.pattern}")], ...]
    analyses: tuple[Annotated[str, pattern(f"{ANALYSIS_NAME.pattern}@{ANALYSIS_VERSION.pattern}")], ...]
    valid_until: AwareDatetime
    # Summaries must be sealed to the researcher.
    sealed: bool = False


class PassportIssuer(Strict):
    """Who may say which datasets a person may use; ``jwks`` holds its keys."""

    issuer: Annotated[str, pattern(r"https://[\x21-\x7e]{1,200}")]
    jwks: Mapping[str, Any]


class Directory(Strict):
    """The whole list. ``version`` grows by one with each change."""

    v: Literal[1] = 1
    federation: Annotated[str, pattern(FEDERATION_NAME.pattern)]
    version: int = Field(ge=1, strict=True)
    # What the coordinator signs the checkpoints of its audit log with.
    coordinator_log_key: Key
    people: tuple[DirectoryPerson, ...] = ()
    nodes: tuple[DirectoryNode, ...] = ()
    projects: tuple[DirectoryProject, ...] = ()
    issuers: tuple[PassportIssuer, ...] = ()
    # Nodes whose cosignatures on the coordinator's log count.
    witnesses: tuple[NodeName, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Directory:
        names = (
            [person.name for person in self.people],
            [node.node for node in self.nodes],
            [project.project for project in self.projects],
            [issuer.issuer for issuer in self.issuers],
            list(self.witnesses),
            # One key, one bearer: a threshold is of people, and a signature is of one purpose.
            [
                self.coordinator_log_key,
                *(person.signing_key for person in self.people),
                *(node.signing_key for node in self.nodes),
            ],
        )
        if any(len(set(group)) != len(group) for group in names):
            raise ValueError("a name or a key stands twice")
        if not set(self.witnesses) <= {node.node for node in self.nodes}:
            raise ValueError("witnesses: a witness is a node of the directory")
        return self

    def person(self, name: str) -> DirectoryPerson | None:
        """Return the person of that name."""
        return next((person for person in self.people if person.name == name), None)

    def node(self, name: str) -> DirectoryNode | None:
        """Return the node of that name."""
        return next((node for node in self.nodes if node.node == name), None)

    def project(self, name: str) -> DirectoryProject | None:
        """Return the project of that name."""
        return next((project for project in self.projects if project.project == name), None)


def parse_directory(data: bytes) -> Directory:
    """Return the directory in ``data``.

    Raises:
        HansaError: ``DIRECTORY_INVALID``, naming the first field at fault.
    """
    return parse_strict(Directory, data, reason=Reason.DIRECTORY_INVALID, what="directory", most_bytes=DIRECTORY_BYTES)


def directory_bytes(directory: Directory) -> bytes:
    """Return ``directory`` as the file that is signed, one entry per line for who reads it."""
    return (json.dumps(directory.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def key_of(directory: Directory, key_id: str) -> str | None:
    """Return the signing key (text) that ``key_id`` names: a person's, a node's or the coordinator's."""
    if key_id == COORDINATOR:
        return directory.coordinator_log_key
    if (person := directory.person(key_id)) is not None:
        return person.signing_key
    node = directory.node(key_id)
    return None if node is None else node.signing_key
