"""What a run of the nemesis has shown, as JSON and for readers; written anew after each round."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

# No failure in n independent tries: with 95 % confidence the rate is below 3/n.
_RULE_OF_THREE: Final = 3


@dataclass(slots=True)
class Report:
    """The tally so far."""

    seed: int
    database: str
    broker: str
    command: str
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: float = 0.0
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    executions: int = 0
    restarts: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)
    verdicts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def violations(self) -> list[str]:
        """Everything that was found wrong."""
        return [f"{name}: {words}" for name, found in self.verdicts.items() for words in found]

    def add(self, verdicts: Mapping[str, Sequence[str]]) -> None:
        """Take a round's verdicts."""
        for name, found in verdicts.items():
            known = self.verdicts.setdefault(name, [])
            known += [words for words in found if words not in known]

    def document(self) -> dict[str, Any]:
        """Return all of it for machines."""
        total = sum(self.faults.values())
        return {
            "v": 1,
            "command": self.command,
            "seed": self.seed,
            "database": self.database,
            "broker": self.broker,
            "begun": self.begun.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "machine": machine(),
            "rounds": self.rounds,
            "faults": dict(sorted(self.faults.items())),
            "faults_in_all": total,
            "jobs": dict(sorted(self.jobs.items())),
            "runs": dict(sorted(self.runs.items())),
            "executions": self.executions,
            "restarts": self.restarts,
            "times": {name: spread(values) for name, values in sorted(self.times.items())},
            "verdicts": self.verdicts,
            "violations": len(self.violations),
            "supports": f"<= {_RULE_OF_THREE / total:.2%} per fault" if total and not self.violations else None,
        }

    def write(self, folder: Path) -> Path:
        """Write ``SEED.json`` and ``SEED.md``; return the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.begun:%Y%m%dT%H%M%S}-{self.seed}"
        for suffix, text in (("json", json.dumps(self.document(), indent=2) + "\n"), ("md", self.text())):
            part = folder / f".{name}.{suffix}.part"
            part.write_text(text)
            part.replace(folder / f"{name}.{suffix}")
        return folder / f"{name}.md"

    def text(self) -> str:
        """Return all of it for readers."""
        found = self.document()
        about = [f"`{found['command']}`", ""]
        about += [f"- {name}: {found[name]}" for name in ("seed", "database", "broker", "begun", "seconds", "rounds")]
        about += [f"- {name}: {value}" for name, value in found["machine"].items()]
        total = found["faults_in_all"]
        lines = ["# Nemesis", "", *about, "", f"## Faults: {total}", "", *_table(("fault", "count"), found["faults"])]
        lines += ["", "## Jobs", "", *_table(("end", "count"), found["jobs"])]
        lines += ["", "## Runs at nodes", "", *_table(("end", "count"), found["runs"])]
        lines += ["", f"{found['executions']} executions; {found['restarts']} restarts of daemons.", ""]
        lines += ["## Times, in seconds", "", "| what | n | p50 | p95 | max |", "|---|--:|--:|--:|--:|"]
        for name, each in found["times"].items():
            lines.append(f"| {name} | {each['n']} | {each['p50']} | {each['p95']} | {each['max']} |")
        lines += ["", "## Promises", "", "| promise | found |", "|---|---|"]
        lines += [f"| {name} | {len(words) or 'nothing'} |" for name, words in self.verdicts.items()]
        lines += ["", *(f"- {words}" for words in self.violations), "", self._supported(total), ""]
        return "\n".join(lines)

    def _supported(self, total: int) -> str:
        if self.violations or not total:
            return f"{len(self.violations)} violations."
        return (
            f"0 violations in {total} faults. By the rule of three that supports, at 95 % confidence and for faults "
            f"like these, a rate of at most {_RULE_OF_THREE / total:.2%} per fault; no less."
        )


def _table(head: tuple[str, str], rows: Mapping[str, int]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|--:|", *(f"| {name} | {count} |" for name, count in rows.items())]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return count, median, 95th percentile and maximum."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)], 1)

    return {"n": len(ordered), "p50": at(0.5), "p95": at(0.95), "max": at(1.0)}


def machine() -> dict[str, Any]:
    """Return what it ran on."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(value, 1) for value in os.getloadavg()],
    }
