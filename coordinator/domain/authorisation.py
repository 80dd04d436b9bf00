"""Who may do what: one decision for every call.

A person's roles are those of the directory in force; a node and a guest have
one role each. A rule says which roles may act on anybody's things and which on
their own only. Whatever a rule says, an auditor's role changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, TypeAlias

from hansa.contract.directory import Role


class Outsider(enum.StrEnum):
    """Callers who are no people of the directory."""

    NODE = "node"
    # Somebody with an invitation; known by network address only.
    GUEST = "guest"


Bearer: TypeAlias = Role | Outsider

_NONE: Final[frozenset[Bearer]] = frozenset()
_READERS_ONLY: Final[frozenset[Bearer]] = frozenset({Role.AUDITOR})

PEOPLE: Final[frozenset[Bearer]] = frozenset(Role)
OPERATORS: Final[frozenset[Bearer]] = frozenset({Role.FEDERATION_OPERATOR})
RESEARCHERS: Final[frozenset[Bearer]] = frozenset({Role.RESEARCHER})
OVERSEERS: Final[frozenset[Bearer]] = frozenset({Role.FEDERATION_OPERATOR, Role.AUDITOR})


@dataclass(frozen=True, slots=True)
class Rule:
    """Which roles may. ``any_owner``: on everybody's things; ``own``: on their own things only."""

    any_owner: frozenset[Bearer] = _NONE
    own: frozenset[Bearer] = _NONE
    changes: bool = False

    @property
    def roles(self) -> frozenset[Bearer]:
        """Every role that the rule names."""
        return self.any_owner | self.own


class Ownership(enum.Enum):
    """Whose the thing is that a call is about."""

    OWN = enum.auto()
    OTHERS = enum.auto()
    # Before the thing is known: may the caller act on anything at all?
    OPEN = enum.auto()


def is_allowed(roles: AbstractSet[Bearer], rule: Rule, ownership: Ownership) -> bool:
    """Say whether somebody with ``roles`` may do what ``rule`` is about.

    Args:
        roles: all that the caller has.
        rule: of the method, or of the step in it.
        ownership: whose the thing is.
    """
    acting = roles - _READERS_ONLY if rule.changes else roles
    takes = rule.any_owner if ownership is Ownership.OTHERS else rule.roles
    return not acting.isdisjoint(takes)


# Jobs: their submitters see and end them, operators and auditors look at all of them.
SEE_JOB: Final = Rule(any_owner=OVERSEERS, own=RESEARCHERS)
END_JOB: Final = Rule(own=RESEARCHERS, changes=True)
READ_RESULT: Final = Rule(own=RESEARCHERS)
# An auditor's evidence comes without summaries: that is READ_RESULT's to say.
SEE_EVIDENCE: Final = Rule(any_owner=frozenset({Role.AUDITOR}), own=RESEARCHERS)
# Why a node is set apart: it may be about its people, and about faults that it is still open to.
SEE_NODE_REASON: Final = Rule(any_owner=OVERSEERS)
SUBMIT_JOB: Final = Rule(own=RESEARCHERS, changes=True)
