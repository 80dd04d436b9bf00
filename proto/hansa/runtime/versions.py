"""Which versions of libraries have a defect that Hansa's defences lean on not being there.

Pure: what is installed is an argument, so that both doctors and their tests
judge by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Versions from ``first`` on and below ``mended`` are weak, for the reason ``why``."""

    library: str
    first: Version
    mended: Version
    why: str


@dataclass(frozen=True, slots=True)
class Weakness:
    """A library as installed that a rule finds weak; ``mended`` is the first version without the defect."""

    library: str
    installed: str
    mended: str
    why: str


# Names are those of the packages; ``sqlite`` is the C library that the store's driver was built with.
RULES: Final[Sequence[Rule]] = (
    Rule("PyJWT", (0,), (2, 13), "tokens: CVE-2026-48523, CVE-2026-48524"),
    Rule("protobuf", (0,), (4, 25, 8), "messages: unbounded recursion, CVE-2025-4565"),
    Rule("protobuf", (5,), (5, 29, 5), "messages: unbounded recursion, CVE-2025-4565"),
    Rule("protobuf", (5, 29, 5), (5, 29, 6), "JSON: unbounded recursion, CVE-2026-0994"),
    Rule("protobuf", (6,), (6, 31, 1), "messages: unbounded recursion, CVE-2025-4565"),
    Rule("protobuf", (6, 31, 1), (6, 33, 5), "JSON: unbounded recursion, CVE-2026-0994"),
    # A checkpoint that resets the log while another connection writes can lose a commit.
    Rule("sqlite", (3, 7, 0), (3, 51, 3), "a WAL reset can lose a committed transaction"),
)
PACKAGES: Final = tuple(dict.fromkeys(rule.library for rule in RULES if rule.library != "sqlite"))


def parse_version(text: str) -> Version:
    """Return the numbers that ``text`` begins with; what stands behind them does not count."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def weaknesses(installed: Mapping[str, str], rules: Sequence[Rule] = RULES) -> list[Weakness]:
    """Return what is weak among ``installed``, versions by library; one that is not there is not judged."""
    found = []
    for rule in rules:
        text = installed.get(rule.library)
        if text is not None and rule.first <= parse_version(text) < rule.mended:
            mended = ".".join(map(str, rule.mended))
            found.append(Weakness(rule.library, text, mended, rule.why))
    return found
