"""A double of the agent's look at the workers of its host, set by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from node_agent.run_rules import RunFacts, WorkerSign


@dataclass
class PresenceDouble:
    """Workers are what ``of`` says; else unknown, as if they had left no card."""

    of: dict[str, WorkerSign] = field(default_factory=dict)
    # Executions that cannot be killed.
    undying: set[tuple[str, int]] = field(default_factory=set)
    cleared: list[tuple[str, int]] = field(default_factory=list)

    def signs(self, runs: Sequence[RunFacts]) -> Mapping[tuple[str, int], WorkerSign]:
        """Return what was set."""
        return {(run.run_id, run.execution): self.of.get(run.worker, WorkerSign.UNKNOWN) for run in runs}

    def clear(self, run: RunFacts) -> bool:
        """Note it; say that it is done unless it is undying."""
        self.cleared.append((run.run_id, run.execution))
        return (run.run_id, run.execution) not in self.undying
