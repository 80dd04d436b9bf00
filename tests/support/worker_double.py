"""A worker that claims each run at the agent's real API and finishes it with one fixed, honest summary.

It stands in for broker, pool and sandbox where a test needs hundreds of runs
and asks which of them the agent hands out, not how they are executed. Claim
and finish are the real calls over the real socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hansa.sdk.bundle import load_bundle
from node_agent.execution.agent_client import AgentAwayError, AgentClient, Claimed, Finish, Outcome, SupersededError


@dataclass(frozen=True, slots=True)
class Executed:
    """What a run would have computed: on which data, with which code, asked how."""

    run_id: str
    execution: int
    parameters: tuple[tuple[str, str], ...]
    snapshot: str
    bundle: str
    snakefile: str

    @property
    def what(self) -> tuple[object, ...]:
        """All but the run's own name."""
        return self.parameters, self.snapshot, self.bundle, self.snakefile


@dataclass
class WorkerDouble:
    """Call it as the scheduler calls the broker: with the id of a run that is to be started."""

    socket: Path
    summary: str
    executed: list[Executed] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    # Why a call to the agent failed; the run is then tried again later, as with a real broker.
    troubles: list[str] = field(default_factory=list)
    _client: AgentClient | None = None

    def __call__(self, run_id: str) -> None:
        client = self._client = self._client or AgentClient(self.socket)
        try:
            claimed = client.claim(run_id, "worker-double", "")
            self.executed.append(_seen(claimed))
            client.finish(
                Finish(run_id=run_id, execution=claimed.execution, outcome=Outcome.SUMMARY, summary=self.summary)
            )
        except AgentAwayError as error:
            self.troubles.append(f"{run_id}: {error}")
            raise
        except SupersededError:
            self.refused.append(run_id)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _seen(claimed: Claimed) -> Executed:
    return Executed(
        run_id=claimed.run_id,
        execution=claimed.execution,
        parameters=tuple(sorted(claimed.parameters.items())),
        snapshot=claimed.snapshot_dir.name,
        bundle=load_bundle(claimed.bundle_dir).digest,
        snakefile=claimed.snakefile,
    )
