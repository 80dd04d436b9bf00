"""What the evil coordinator's mutants came to, for who runs the tests with ``-s``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def report(what: str, outcomes: Mapping[Any, int], reasons: Mapping[str, int] | None = None) -> None:
    """Write the counts on one line."""
    parts = [f"{outcome}: {count}" for outcome, count in sorted(outcomes.items())]
    why = f" ({', '.join(f'{reason} {count}' for reason, count in sorted((reasons or {}).items()))})" if reasons else ""
    sys.stdout.write(f"\n{what}: {sum(outcomes.values())} mutants; {'; '.join(parts)}{why}\n")
