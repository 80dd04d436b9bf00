"""An agent's local API with a few runs in it, and no agent behind it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hansa.contract.envelope import from_json
from hansa.contract.errors import HansaError, Reason
from node_agent.config import StateFolder, short_path
from node_agent.policy.file import load_policy, store_policy
from node_agent.policy.policy import policy_digest, policy_of

WAITING = "0a" + "1" * 30
FAILED = "0b" + "2" * 30


def run_of(run_id: str, state: str, **more: str) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "job_id": "00000000-0000-7000-8000-000000000000",
        "analysis": "allele-frequency@1.0",
        "submitter": "ada",
        "dataset": "FI-aisnp",
        "state": state,
        "reason": "",
        "incident": "",
        "execution": 1,
        "updated_at": "2026-01-01T00:00:00+00:00",
        **more,
    }


SUMMARY = {
    "v": 1,
    "axes": {"variant": ["15:28365618:A:G"], "stratum": ["all", "female"]},
    "notes": {"variant": {"rsid": ["rs12913832"]}},
    "arrays": {
        "ac": {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "values": [41, None]},
        "people": {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "values": [99, None]},
    },
}


@dataclass
class AgentDouble:
    """What the routes answer from; tests read and change it."""

    state: StateFolder
    runs: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            WAITING: run_of(WAITING, "AWAITING_RELEASE"),
            FAILED: run_of(FAILED, "FAILED", reason="ANALYSIS_FAILED", incident="inc-1"),
        }
    )
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    refuse_datasets: bool = False
    # A dataset that arrives sets ``arrived`` and is taken in once ``let_in`` is set.
    arrived: threading.Event = field(default_factory=threading.Event)
    let_in: threading.Event = field(default_factory=threading.Event)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/status", self._status),
                Route("/v1/datasets", self._datasets, methods=["GET", "POST"]),
                Route("/v1/datasets/{id}", self._remove, methods=["DELETE"]),
                Route("/v1/runs", self._runs),
                Route("/v1/runs/{id}", self._run),
                Route("/v1/airlock", self._airlock),
                Route("/v1/airlock/{id}", self._waiting),
                Route("/v1/airlock/{id}/{decision}", self._decide, methods=["POST"]),
                Route("/v1/policy", self._policy, methods=["GET", "PUT"]),
            ],
            exception_handlers={HansaError: _refuse},
        )

    async def _status(self, _request: Request) -> JSONResponse:
        return JSONResponse({"node": "FI", "federation": "demo.example", "state": "ONLINE", "runs": {"FAILED": 1}})

    async def _datasets(self, request: Request) -> JSONResponse:
        if request.method == "GET":
            return JSONResponse({"datasets": list(self.datasets.values())})
        body = await request.json()
        self.arrived.set()
        await asyncio.to_thread(self.let_in.wait)
        if self.refuse_datasets:
            raise HansaError(Reason.DATASET_INVALID)
        shutil.move(body["staging_dir"], self.state.datasets / body["id"])
        self.datasets[body["id"]] = {
            "id": body["id"],
            "snapshot": "sha256:" + "b" * 64,
            "build": "GRCh37",
            "people": 99,
            "variants": 7,
            "skipped": {"symbolic": 1},
        }
        return JSONResponse({"dataset": self.datasets[body["id"]]})

    async def _remove(self, request: Request) -> JSONResponse:
        if self.datasets.pop(request.path_params["id"], None) is None:
            raise HansaError(Reason.DATASET_UNKNOWN, "This node has no such dataset.", field="id")
        return JSONResponse({})

    async def _runs(self, _request: Request) -> JSONResponse:
        return JSONResponse({"runs": list(self.runs.values())})

    async def _run(self, request: Request) -> JSONResponse:
        run = self._known(request)
        log = self.state.runs / run["run_id"] / "1.ctl" / "log"
        return JSONResponse({**run, "parameters": {"variants": "rs12913832"}, "log_path": str(log)})

    async def _airlock(self, _request: Request) -> JSONResponse:
        return JSONResponse({"runs": [run for run in self.runs.values() if run["state"] == "AWAITING_RELEASE"]})

    async def _waiting(self, request: Request) -> JSONResponse:
        checks = [{"rule": "cohort", "outcome": "passed", "count": 1}]
        found = {
            "run": self._known(request),
            "node": "FI",
            "release_class": "dual",
            "decisions": [{"checker": "checker2-fi", "decision": "RELEASE", "at": "2026-01-01T00:00:00+00:00"}],
            "checks": checks,
            "summary": SUMMARY,
            "digest": "sha256:" + "d" * 64,
        }
        return JSONResponse(found)

    async def _decide(self, request: Request) -> JSONResponse:
        run, decision = self._known(request), request.path_params["decision"]
        if run["state"] != "AWAITING_RELEASE":
            raise HansaError(Reason.RELEASE_CONFLICT)
        signed = from_json((await request.json())["envelope"].encode())
        self.decisions.append({"route": decision, "signed": signed})
        run["state"] = {"release": "RELEASED", "withhold": "WITHHELD"}[decision]
        return JSONResponse({"run": run})

    async def _policy(self, request: Request) -> JSONResponse:
        if request.method == "PUT":
            store_policy(self.state.policy_file, policy_of((await request.json())["policy"]))
        policy = load_policy(self.state.policy_file)
        return JSONResponse({"policy": policy.model_dump(mode="json"), "digest": policy_digest(policy)})

    def _known(self, request: Request) -> dict[str, Any]:
        run = self.runs.get(request.path_params["id"])
        if run is None:
            raise HansaError(Reason.RUN_UNKNOWN)
        return run


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HansaError)
    return JSONResponse({"reason": error.reason, "message": error.public, "field": error.field}, status_code=409)


@contextlib.contextmanager
def running_agent(double: AgentDouble) -> Iterator[AgentDouble]:
    """Serve on the state folder's socket until the context ends."""
    with serving(double.app(), double.state):
        yield double


@contextlib.contextmanager
def serving(app: Starlette, state: StateFolder) -> Iterator[None]:
    """Serve ``app`` on the state folder's socket until the context ends."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    with short_path(state.socket) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(name)
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()
