"""The agent's HTTP API on a unix socket: for its workers and its commands.

Whoever can open the socket is the node's operator: it lies in the state
folder, which is closed to everyone else. Every answer is JSON; an error is
``{"reason", "message", "field"}``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.contract.envelope import Signed, from_json
from hansa.contract.errors import Code, HansaError, Reason
from hansa.contract.limits import SUMMARY_BYTES
from node_agent.airlock.gate import RELEASE, WITHHOLD, Airlock
from node_agent.approvals import Approvals
from node_agent.audit.trail import MOST_ENTRIES, AuditTrail
from node_agent.backups import Backups, Content
from node_agent.datasets import Datasets
from node_agent.executions import Executions, Finish
from node_agent.local_api.views import Views, approval_json, dataset_json, run_json
from node_agent.policy.changes import PolicyChanges

_log = structlog.get_logger(__name__)

_HTTP: Final[Mapping[Code, int]] = {
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.PERMISSION_DENIED: 403,
    Code.UNAVAILABLE: 503,
    Code.RESOURCE_EXHAUSTED: 507,
}
_BODY_BYTES: Final = 1 << 20
# A summary is JSON within JSON: each of its bytes may be escaped.
_FINISH_BYTES: Final = 2 * SUMMARY_BYTES + _BODY_BYTES
Handler = Callable[[Request], Awaitable[Any]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Claim(_Strict):
    run_id: str
    worker: str


class _Beat(_Strict):
    run_id: str
    execution: int


class _AddDataset(_Strict):
    id: str
    staging_dir: str


class _Decline(_Strict):
    reason: str
    by: str


class _Enveloped(_Strict):
    # DSSE's JSON, as a text: the bytes that were signed.
    envelope: str


class _Revoke(_Strict):
    by: str


class _PutPolicy(_Strict):
    policy: dict[str, Any]
    by: str = ""


class _AuditPage(_Strict):
    after: int | None = Field(default=None, ge=-1, lt=1 << 62)
    limit: int = Field(default=100, ge=0, le=MOST_ENTRIES)


class _AuditNoted(_Strict):
    size: int | None = Field(default=None, ge=0)
    root: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")


class _Erase(_Strict):
    index: int | None = Field(default=None, ge=0, lt=1 << 62)
    person: str = Field(default="", max_length=64)
    by: str


class _Accept(_Strict):
    reason: str
    by: str


class _Backup(_Strict):
    folder: str = Field(min_length=1, max_length=4096)
    keys: bool = True
    datasets: bool = False


class LocalApi:
    """The routes; each parses, makes one call, and converts."""

    def __init__(  # noqa: PLR0913 - one use case for each part of the API
        self,
        *,
        executions: Executions,
        datasets: Datasets,
        airlock: Airlock,
        approvals: Approvals,
        policy: PolicyChanges,
        audit: AuditTrail,
        backups: Backups,
        views: Views,
    ) -> None:
        """Take the use cases behind the routes."""
        self._executions = executions
        self._datasets = datasets
        self._airlock = airlock
        self._approvals = approvals
        self._policy = policy
        self._audit = audit
        self._backups = backups
        self._views = views

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                _route("POST", "/v1/worker/claim", self._claim),
                _route("POST", "/v1/worker/beat", self._beat),
                _route("POST", "/v1/worker/finish", self._finish),
                _route("GET", "/v1/status", self._status),
                _route("GET", "/v1/datasets", self._list_datasets),
                _route("POST", "/v1/datasets", self._add_dataset),
                _route("DELETE", "/v1/datasets/{id}", self._remove_dataset),
                _route("GET", "/v1/runs", self._list_runs),
                _route("GET", "/v1/runs/{id}", self._show_run),
                _route("GET", "/v1/runs/{id}/approval", self._show_request),
                _route("POST", "/v1/runs/{id}/approve", self._approve),
                _route("POST", "/v1/runs/{id}/decline", self._decline),
                _route("GET", "/v1/approvals", self._list_approvals),
                _route("POST", "/v1/approvals", self._add_approval),
                _route("POST", "/v1/approvals/{id}/revoke", self._revoke_approval),
                _route("GET", "/v1/airlock", self._list_airlock),
                _route("GET", "/v1/airlock/{id}", self._show_airlock),
                _route("POST", "/v1/airlock/{id}/release", self._release),
                _route("POST", "/v1/airlock/{id}/withhold", self._withhold),
                _route("GET", "/v1/policy", self._show_policy),
                _route("PUT", "/v1/policy", self._put_policy),
                _route("GET", "/v1/audit", self._show_audit),
                _route("GET", "/v1/audit/verify", self._verify_audit),
                _route("GET", "/v1/audit/checkpoint", self._show_checkpoint),
                _route("GET", "/v1/audit/proofs/{index:int}", self._prove_entry),
                _route("POST", "/v1/audit/erase", self._erase),
                _route("POST", "/v1/audit/accept-coordinator-log", self._accept_coordinator_log),
                _route("POST", "/v1/backup", self._back_up),
            ]
        )

    async def _claim(self, request: Request) -> Any:
        body = _Claim.model_validate_json(await _body(request))
        return await self._executions.claim(body.run_id, body.worker)

    async def _beat(self, request: Request) -> Any:
        body = _Beat.model_validate_json(await _body(request))
        return {"cancel": await self._executions.beat(body.run_id, body.execution)}

    async def _finish(self, request: Request) -> Any:
        await self._executions.finish(Finish.model_validate_json(await _body(request, _FINISH_BYTES)))
        return {}

    async def _status(self, _request: Request) -> Any:
        return await self._views.status()

    async def _list_datasets(self, _request: Request) -> Any:
        return {"datasets": [dataset_json(row) for row in await self._datasets.all()]}

    async def _add_dataset(self, request: Request) -> Any:
        body = _AddDataset.model_validate_json(await _body(request))
        return {"dataset": dataset_json(await self._datasets.add(body.id, Path(body.staging_dir)))}

    async def _remove_dataset(self, request: Request) -> Any:
        await self._datasets.remove(request.path_params["id"])
        return {}

    async def _list_runs(self, _request: Request) -> Any:
        return {"runs": await self._views.runs()}

    async def _show_run(self, request: Request) -> Any:
        return await self._views.run(request.path_params["id"])

    async def _show_request(self, request: Request) -> Any:
        return await self._approvals.request(request.path_params["id"])

    async def _approve(self, request: Request) -> Any:
        run = await self._approvals.approve(request.path_params["id"], await _envelope(request))
        return {"run": run_json(run)}

    async def _decline(self, request: Request) -> Any:
        body = _Decline.model_validate_json(await _body(request))
        run = await self._approvals.decline(request.path_params["id"], body.by[:64], body.reason[:1000])
        return {"run": run_json(run)}

    async def _list_approvals(self, _request: Request) -> Any:
        return {"approvals": [approval_json(row) for row in await self._approvals.all()]}

    async def _add_approval(self, request: Request) -> Any:
        return {"approval": approval_json(await self._approvals.add(await _envelope(request)))}

    async def _revoke_approval(self, request: Request) -> Any:
        body = _Revoke.model_validate_json(await _body(request))
        return {"approval": approval_json(await self._approvals.revoke(request.path_params["id"], body.by[:64]))}

    async def _list_airlock(self, _request: Request) -> Any:
        return {"runs": await self._views.waiting()}

    async def _show_airlock(self, request: Request) -> Any:
        return await self._views.summary(request.path_params["id"])

    async def _release(self, request: Request) -> Any:
        return await self._decide(request, RELEASE)

    async def _withhold(self, request: Request) -> Any:
        return await self._decide(request, WITHHOLD)

    async def _decide(self, request: Request, decision: str) -> Any:
        run = await self._airlock.decide(request.path_params["id"], decision, await _envelope(request))
        return {"run": run_json(run)}

    async def _show_policy(self, _request: Request) -> Any:
        return self._policy.view()

    async def _put_policy(self, request: Request) -> Any:
        body = _PutPolicy.model_validate_json(await _body(request))
        await self._policy.replace(body.policy, body.by[:64])
        return self._policy.view()

    async def _show_audit(self, request: Request) -> Any:
        asked = _AuditPage.model_validate(dict(request.query_params))
        return await self._audit.entries(after=asked.after, limit=asked.limit)

    async def _verify_audit(self, request: Request) -> Any:
        noted = _AuditNoted.model_validate(dict(request.query_params))
        return await self._audit.verify(size=noted.size, root=noted.root)

    async def _show_checkpoint(self, _request: Request) -> Any:
        return await self._audit.checkpoint()

    async def _prove_entry(self, request: Request) -> Any:
        return await self._audit.prove(min(request.path_params["index"], 1 << 62))

    async def _erase(self, request: Request) -> Any:
        body = _Erase.model_validate_json(await _body(request))
        return await self._audit.erase(index=body.index, person=body.person, by=body.by[:64])

    async def _accept_coordinator_log(self, request: Request) -> Any:
        body = _Accept.model_validate_json(await _body(request))
        return await self._audit.accept_coordinator_log(by=body.by[:64], reason=body.reason[:1000])

    async def _back_up(self, request: Request) -> Any:
        body = _Backup.model_validate_json(await _body(request))
        content = Content(keys=body.keys, datasets=body.datasets)
        return (await self._backups.make(Path(body.folder), content)).model_dump(mode="json")


async def _body(request: Request, most_bytes: int = _BODY_BYTES) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise HansaError(Reason.MALFORMED, f"The request is over {most_bytes} bytes.", field="body")
    return bytes(body)


async def _envelope(request: Request) -> Signed:
    return from_json(_Enveloped.model_validate_json(await _body(request)).envelope.encode())


def _route(method: str, path: str, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse(await handler(request))
        except HansaError as error:
            _log.info("local_call_refused", path=path, reason=error.reason.value, detail=str(error))
            return _refusal(error)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            return _refusal(HansaError(Reason.MALFORMED, f"{field or 'body'}: {first['msg']}", field=field))
        except Exception:  # the boundary: nothing may leak past it
            _log.exception("local_call_crashed", path=path)
            return _refusal(HansaError(Reason.INTERNAL, "Internal error; the agent's log says more."))

    return Route(path, endpoint, methods=[method])


def _refusal(error: HansaError) -> Response:
    body = {"reason": error.reason.value, "message": error.public, "field": error.field}
    return JSONResponse(body, status_code=_HTTP.get(error.code, 500))
