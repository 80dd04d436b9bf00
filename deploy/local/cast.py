"""Who takes part in a local federation, and where each one's key lies.

Every role has a folder of its own: what one machine plays here, different
people hold on different machines in a real federation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

OPERATOR, SECOND_OPERATOR = "operator", "operator-2"
RESEARCHER, AUDITOR, AUTHOR = "researcher", "auditor", "author"
REVIEWERS: Final = ("reviewer-1", "reviewer-2")
# Keys of metadata, not people of the directory: two of three sign.
ROOT_SIGNERS: Final = ("root-1", "root-2", "root-3")
TARGETS_SIGNERS: Final = ("national-1", "national-2", "national-3")
THRESHOLD: Final = 2
SNAPSHOT, TIMESTAMP, LOG = "snapshot", "timestamp", "log"


@dataclass(frozen=True, slots=True)
class Member:
    """A person of the directory."""

    name: str
    organisation: str
    roles: tuple[str, ...]
    nodes: tuple[str, ...] = ()


def holder_of(node: str) -> str:
    """Return the name of a node's data holder."""
    return f"holder-{node.lower()}"


def checker_of(node: str) -> str:
    """Return the name of a node's output checker."""
    return f"checker-{node.lower()}"


def second_checker_of(node: str) -> str:
    """Return the name of a node's other output checker."""
    return f"checker-{node.lower()}-2"


def members(nodes: Sequence[str]) -> tuple[Member, ...]:
    """Return everybody whom the directory of a federation of ``nodes`` names."""
    central = (
        Member(OPERATOR, "hub", ("federation-operator",)),
        Member(SECOND_OPERATOR, "hub", ("federation-operator",)),
        Member(RESEARCHER, "university", ("researcher",)),
        Member(AUDITOR, "authority", ("auditor",)),
        Member(AUTHOR, "university", ("researcher",)),
        Member(REVIEWERS[0], "institute-north", ("reviewer",)),
        Member(REVIEWERS[1], "institute-south", ("reviewer",)),
    )
    local = [
        member
        for node in nodes
        for member in (
            Member(holder_of(node), f"biobank-{node.lower()}", ("data-holder",), (node,)),
            Member(checker_of(node), f"biobank-{node.lower()}", ("output-checker",), (node,)),
            Member(second_checker_of(node), f"biobank-{node.lower()}", ("output-checker",), (node,)),
        )
    ]
    return (*central, *local)


def folder_of(name: str) -> str:
    """Return the folder, below the keys' folder, of who bears ``name``."""
    stem = name.rstrip("0123456789").rstrip("-")
    for prefix in ("holder", "checker"):
        if stem.startswith(f"{prefix}-"):
            return f"{prefix}s"
    return {"root": "root", "national": "targets", SNAPSHOT: "online", TIMESTAMP: "online", LOG: "online"}.get(
        stem, stem
    )
