"""The worker's calls to the agent, over the socket in the state folder.

Whatever goes wrong in between is one thing to a worker: the agent is away, and
will be back.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from hansa.contract.errors import RunReason
from hansa.contract.manifest import Limits

_TIMEOUT: Final = httpx.Timeout(10.0, connect=2.0)
# Reading and checking a large summary takes a while.
_FINISH_TIMEOUT: Final = httpx.Timeout(120.0, connect=2.0)


class AgentAwayError(Exception):
    """The agent does not answer, or not sensibly."""


class SupersededError(Exception):
    """The agent does not want this execution (any more)."""


class RefusedError(Exception):
    """The agent cannot take what was sent, however often."""


class Claimed(BaseModel):
    """A run as the agent hands it out."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    # For the log.
    job_id: str = ""
    execution: int
    work_dir: Path
    bundle_dir: Path
    snakefile: str
    parameters: Mapping[str, str]
    snapshot_dir: Path
    limits: Limits
    deadline: AwareDatetime

    @property
    def control_dir(self) -> Path:
        """The execution's folder that no sandbox sees: its log, its rules, its incident."""
        return self.work_dir.with_name(f"{self.work_dir.name}.ctl")

    @property
    def name(self) -> str:
        """The execution's name on this node."""
        return f"{self.run_id}-{self.execution}"

    def seconds_left(self, now: datetime) -> float:
        """Return how long it may run: its own limit, or until the job's deadline."""
        return min(self.limits.wall_seconds, (self.deadline - now).total_seconds())


class Outcome(enum.StrEnum):
    """How an execution ended."""

    SUMMARY = "summary"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # Through no fault of the analysis; ``reason`` is for the case that it was the last execution.
    LOST = "lost"


class Finish(BaseModel):
    """What a worker reports of an execution's end."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    execution: int
    outcome: Outcome
    reason: RunReason | None = None
    incident: str | None = None
    summary: str | None = None


class AgentClient:
    """Speaks to the agent on ``socket``. Thread-safe."""

    def __init__(self, socket: Path) -> None:
        # By descriptor of the folder: a socket's address must be short.
        self._folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        transport = httpx.HTTPTransport(uds=f"/proc/self/fd/{self._folder}/{socket.name}")
        self._http = httpx.Client(transport=transport, base_url="http://agent", timeout=_TIMEOUT, trust_env=False)

    def close(self) -> None:
        """Hang up. A repeat does nothing."""
        self._http.close()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def claim(self, run_id: str, worker: str, token: str) -> Claimed:
        """Claim ``run_id``.

        Args:
            run_id: which run.
            worker: the name on this worker's card.
            token: 32 hexadecimal digits, drawn for this message: asked again with it, the agent repeats its answer.

        Raises:
            SupersededError: it is not to be run.
            AgentAwayError: nothing is known; the claim may have been granted.
        """
        body = self._post("claim", {"run_id": run_id, "worker": worker, "token": token})
        try:
            return Claimed.model_validate(body)
        except ValidationError as error:
            raise AgentAwayError(f"the answer to a claim cannot be read: {error.error_count()} errors") from error

    def beat(self, run_id: str, execution: int) -> bool:
        """Give a sign of life; return whether the run shall be cancelled.

        Raises:
            SupersededError: kill it; its result is not wanted.
            AgentAwayError: go on.
        """
        return bool(self._post("beat", {"run_id": run_id, "execution": execution}).get("cancel"))

    def finish(self, report: Finish) -> None:
        """Report an execution's end.

        Raises:
            SupersededError: too late; nothing was changed.
            RefusedError: the report cannot be read or is too large.
            AgentAwayError: try again.
        """
        self._post("finish", report.model_dump(mode="json"), timeout=_FINISH_TIMEOUT)

    def _post(self, call: str, body: Mapping[str, Any], timeout: httpx.Timeout = _TIMEOUT) -> dict[str, Any]:
        try:
            response = self._http.post(f"/v1/worker/{call}", json=body, timeout=timeout)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise AgentAwayError(f"{call}: {type(error).__name__}: {error}") from error
        if response.status_code == httpx.codes.OK and isinstance(answer, dict):
            return answer
        if response.status_code == httpx.codes.CONFLICT:
            raise SupersededError(call)
        if httpx.codes.is_client_error(response.status_code):
            raise RefusedError(f"{call}: {response.status_code} {answer}")
        raise AgentAwayError(f"{call}: status {response.status_code}")
