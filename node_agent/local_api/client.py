"""The client of the agent's local API, for the command ``hansa-node``.

A refusal by the agent comes back as the ``HansaError`` that the agent raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import is_run_id
from node_agent.config import StateFolder, short_path

_PATIENCE: Final = httpx.Timeout(60.0, connect=5.0)
# The agent reads the whole snapshot again before it takes it in.
_ADD_PATIENCE: Final = httpx.Timeout(3600.0, connect=5.0)
_OK: Final = 200


class AgentClient:
    """Calls to the agent of one state folder; a context manager."""

    def __init__(self, state: StateFolder) -> None:
        self._stack = contextlib.ExitStack()
        try:
            address = self._stack.enter_context(short_path(state.socket))
        except OSError as error:
            raise HansaError(Reason.AGENT_UNREACHABLE, log=str(error)) from error
        transport = httpx.HTTPTransport(uds=address)
        self._http = self._stack.enter_context(
            httpx.Client(transport=transport, base_url="http://agent", timeout=_PATIENCE, trust_env=False)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def status(self) -> dict[str, Any]:
        """Return how the agent stands."""
        return self._call("GET", "/v1/status")

    def datasets(self) -> list[dict[str, Any]]:
        """Return the node's datasets."""
        return _listed(self._call("GET", "/v1/datasets"), "datasets")

    def add_dataset(self, dataset_id: str, staging: Path) -> dict[str, Any]:
        """Hand the snapshot in ``staging`` over to the agent; return the dataset."""
        body = {"id": dataset_id, "staging_dir": str(staging)}
        return _inner(self._call("POST", "/v1/datasets", body, timeout=_ADD_PATIENCE), "dataset")

    def remove_dataset(self, dataset_id: str) -> None:
        """Have the agent forget and delete a dataset."""
        self._call("DELETE", f"/v1/datasets/{quote(dataset_id, safe='')}")

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs, the newest first."""
        return _listed(self._call("GET", "/v1/runs"), "runs")

    def run(self, run_id: str) -> dict[str, Any]:
        """Return one run, with its parameters and where its log is."""
        return self._call("GET", f"/v1/runs/{run_id}")

    def airlock(self) -> list[dict[str, Any]]:
        """Return the runs whose summaries wait for a decision."""
        return _listed(self._call("GET", "/v1/airlock"), "runs")

    def airlock_run(self, run_id: str) -> dict[str, Any]:
        """Return a waiting summary with what the checks found."""
        return self._call("GET", f"/v1/airlock/{run_id}")

    def release(self, run_id: str, *, reason: str, by: str) -> dict[str, Any]:
        """Let the summary leave; return the run."""
        return _inner(self._call("POST", f"/v1/airlock/{run_id}/release", {"reason": reason, "by": by}), "run")

    def withhold(self, run_id: str, *, reason: str, by: str) -> dict[str, Any]:
        """Keep the summary here for good; return the run."""
        return _inner(self._call("POST", f"/v1/airlock/{run_id}/withhold", {"reason": reason, "by": by}), "run")

    def policy(self) -> dict[str, Any]:
        """Return the policy in force and its digest."""
        return self._call("GET", "/v1/policy")

    def put_policy(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Put a whole policy in force; return it with its digest."""
        return self._call("PUT", "/v1/policy", {"policy": dict(policy)})

    def resolve_run(self, text: str) -> str:
        """Return the id of the run that ``text`` names: an id, or its beginning.

        Raises:
            HansaError: ``RUN_UNKNOWN``; none, or several.
        """
        if is_run_id(text):
            return text
        return one_run(text, [run["run_id"] for run in self.runs()])

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: httpx.Timeout = _PATIENCE,  # noqa: ASYNC109 - not a coroutine
    ) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=body, timeout=timeout)
            value = response.json()
        except (httpx.TransportError, ValueError) as error:
            raise HansaError(Reason.AGENT_UNREACHABLE, log=f"{type(error).__name__}: {error}") from error
        if not isinstance(value, dict):
            raise HansaError(Reason.AGENT_UNREACHABLE, "What answers on the agent's socket is no agent.")
        if response.status_code != _OK:
            raise _refusal(value)
        return value


def one_run(text: str, known: Sequence[str]) -> str:
    """Return the one id of ``known`` that begins with ``text``.

    Raises:
        HansaError: ``RUN_UNKNOWN``; none, or several.
    """
    matching = [run_id for run_id in known if text and run_id.startswith(text.lower())]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise HansaError(
            Reason.RUN_UNKNOWN, f"{text[:40]} begins {len(matching)} runs' ids; give more of it.", field="run"
        )
    raise HansaError(Reason.RUN_UNKNOWN, f"There is no run {text[:40]!a}; see `hansa-node job list`.", field="run")


def _refusal(value: Mapping[str, Any]) -> HansaError:
    message, field = str(value.get("message", "")), str(value.get("field", ""))
    try:
        return HansaError(Reason(value.get("reason")), message, field=field)
    except ValueError:
        # A newer agent may know reasons that this command does not.
        return HansaError(Reason.INTERNAL, message, field=field)


def _listed(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list):
        raise HansaError(Reason.AGENT_UNREACHABLE, "What answers on the agent's socket is no agent.")
    return found


def _inner(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise HansaError(Reason.AGENT_UNREACHABLE, "What answers on the agent's socket is no agent.")
    return found
