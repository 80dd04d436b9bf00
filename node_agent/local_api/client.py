"""The client of the agent's local API, for the command ``hansa-node``.

A refusal by the agent comes back as the ``HansaError`` that the agent raised.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import is_run_id
from node_agent.config import StateFolder, short_path

_PATIENCE_SECONDS: Final = 60.0
# The agent reads the whole snapshot again before it takes it in, or copies all that it has.
_ADD_PATIENCE_SECONDS: Final = 3600.0
_OK: Final = 200


class _Connection(http.client.HTTPConnection):
    """HTTP to the agent's socket.

    The standard library's client, since a command makes one call or two and
    larger clients take longer to import than the call takes.
    """

    def __init__(self, path: Path, patience_seconds: float) -> None:
        super().__init__("agent", timeout=patience_seconds)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket, however long its path is."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_path(self._path) as name:
            self.sock.connect(name)


class AgentClient:
    """Calls to the agent of one state folder, each on a connection of its own."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def status(self) -> dict[str, Any]:
        """Return how the agent stands."""
        return self._call("GET", "/v1/status")

    def datasets(self) -> list[dict[str, Any]]:
        """Return the node's datasets."""
        return _listed(self._call("GET", "/v1/datasets"), "datasets")

    def add_dataset(self, dataset_id: str, staging: Path) -> dict[str, Any]:
        """Hand the snapshot in ``staging`` over to the agent; return the dataset."""
        body = {"id": dataset_id, "staging_dir": str(staging)}
        return _inner(self._call("POST", "/v1/datasets", body, patience_seconds=_ADD_PATIENCE_SECONDS), "dataset")

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

    def decide(self, run_id: str, verb: str, envelope: bytes) -> dict[str, Any]:
        """Hand in a signed decision (DSSE JSON); ``verb`` is release or withhold. Return the run."""
        body = {"envelope": envelope.decode()}
        return _inner(self._call("POST", f"/v1/airlock/{run_id}/{verb}", body), "run")

    def approval_request(self, run_id: str) -> dict[str, Any]:
        """Return what a data holder signs to approve a run that waits."""
        return self._call("GET", f"/v1/runs/{run_id}/approval")

    def approve(self, run_id: str, envelope: bytes) -> dict[str, Any]:
        """Hand in the signed approval of one job; return the run."""
        return _inner(self._call("POST", f"/v1/runs/{run_id}/approve", {"envelope": envelope.decode()}), "run")

    def decline(self, run_id: str, *, reason: str, by: str) -> dict[str, Any]:
        """Decline a job that waits for an approval; return the run."""
        return _inner(self._call("POST", f"/v1/runs/{run_id}/decline", {"reason": reason, "by": by}), "run")

    def approvals(self) -> list[dict[str, Any]]:
        """Return all approvals, the newest first."""
        return _listed(self._call("GET", "/v1/approvals"), "approvals")

    def add_approval(self, envelope: bytes) -> dict[str, Any]:
        """Hand in a signed standing approval; return it."""
        return _inner(self._call("POST", "/v1/approvals", {"envelope": envelope.decode()}), "approval")

    def revoke_approval(self, approval_id: str, *, by: str) -> dict[str, Any]:
        """Let an approval count no more; return it."""
        path = f"/v1/approvals/{quote(approval_id, safe='')}/revoke"
        return _inner(self._call("POST", path, {"by": by}), "approval")

    def policy(self) -> dict[str, Any]:
        """Return the policy in force and its digest."""
        return self._call("GET", "/v1/policy")

    def put_policy(self, policy: Mapping[str, Any], *, by: str) -> dict[str, Any]:
        """Put a whole policy in force; return it with its digest."""
        return self._call("PUT", "/v1/policy", {"policy": dict(policy), "by": by})

    def audit(self, *, after: int | None = None, limit: int) -> dict[str, Any]:
        """Return entries of the audit log after an index, or the newest ones, with its size and root."""
        begin = "" if after is None else f"&after={after}"
        return self._call("GET", f"/v1/audit?limit={limit}{begin}")

    def verify_audit(self, *, size: int | None = None, root: str = "") -> dict[str, Any]:
        """Have the agent recount its audit log, against a noted size and root if they are given."""
        noted = "" if size is None else f"?size={size}&root={quote(root)}"
        return self._call("GET", f"/v1/audit/verify{noted}", patience_seconds=_ADD_PATIENCE_SECONDS)

    def audit_checkpoint(self) -> dict[str, Any]:
        """Return the log's signed checkpoint, and the newest one that the coordinator has cosigned."""
        return self._call("GET", "/v1/audit/checkpoint")

    def prove_audit(self, index: int) -> dict[str, Any]:
        """Return an entry with the proof that it is in the log."""
        return self._call("GET", f"/v1/audit/proofs/{index}")

    def erase_audit(self, *, index: int | None, person: str, by: str) -> dict[str, Any]:
        """Erase names and reasons; return of how many entries."""
        return self._call("POST", "/v1/audit/erase", {"index": index, "person": person, "by": by})

    def back_up(self, place: Path, *, keys: bool, datasets: bool) -> dict[str, Any]:
        """Have the agent make a backup as the new folder ``place``; return its manifest."""
        body = {"folder": str(place), "keys": keys, "datasets": datasets}
        return self._call("POST", "/v1/backup", body, patience_seconds=_ADD_PATIENCE_SECONDS)

    def accept_coordinator_log(self, *, reason: str, by: str) -> dict[str, Any]:
        """Take over the coordinator's log although it has forked; return how the logs stand."""
        return self._call("POST", "/v1/audit/accept-coordinator-log", {"reason": reason, "by": by})

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
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> dict[str, Any]:
        connection = _Connection(self._state.socket, patience_seconds)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            value = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise HansaError(Reason.AGENT_UNREACHABLE, log=f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if not isinstance(value, dict):
            raise _no_agent()
        if response.status != _OK:
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
        return HansaError(Reason(str(value.get("reason"))), message, field=field)
    except ValueError:
        # A newer agent may know reasons that this command does not.
        return HansaError(Reason.INTERNAL, message, field=field)


def _listed(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list):
        raise _no_agent()
    return found


def _inner(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise _no_agent()
    return found


def _no_agent() -> HansaError:
    return HansaError(Reason.AGENT_UNREACHABLE, "What answers on the agent's socket is no agent.")
