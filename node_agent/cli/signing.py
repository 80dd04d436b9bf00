"""What a data holder signs, made and signed on this side of the agent's socket: their key goes nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from hansa.contract.approval import JobApproval, StandingApproval
from hansa.contract.envelope import APPROVAL_TYPE, sign, to_json
from hansa.contract.errors import HansaError, Reason
from hansa.runtime.clock import utc_now
from hansa.sdk.keys import load_private_key

M = TypeVar("M", bound=BaseModel)


def job_approval(request: Mapping[str, Any], person: str, key: Path) -> bytes:
    """Return the signed approval (DSSE's JSON) of the job that ``request`` shows.

    Raises:
        HansaError: ``APPROVAL_INVALID``, ``KEY_INVALID``.
    """
    asked = {name: request.get(name) for name in ("federation", "node", "job_id", "job_digest")}
    values = {**asked, "approval_id": str(uuid4()), "approver": person, "at": utc_now()}
    return _signed(_made(JobApproval, values).to_bytes(), person, key)


def standing_approval(values: Mapping[str, Any], person: str, key: Path) -> bytes:
    """Return the signed standing approval (DSSE's JSON) with ``values``.

    Raises:
        HansaError: ``APPROVAL_INVALID``, naming the field; ``KEY_INVALID``.
    """
    given = {**values, "approval_id": str(uuid4()), "approver": person}
    return _signed(_made(StandingApproval, given).to_bytes(), person, key)


def moment(text: str) -> datetime:
    """Return the time in ``text``: a day, which ends in UTC with its last moment, or a time with its zone.

    Raises:
        HansaError: ``APPROVAL_INVALID``.
    """
    try:
        found = datetime.fromisoformat(text if "T" in text else f"{text}T23:59:59+00:00")
    except ValueError as error:
        raise HansaError(
            Reason.APPROVAL_INVALID, f"{text[:40]!a} is no day such as 2026-12-31.", field="until"
        ) from error
    if found.tzinfo is None:
        raise HansaError(Reason.APPROVAL_INVALID, f"{text[:40]!a} has no time zone.", field="until")
    return found


def _made(model: type[M], values: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HansaError(Reason.APPROVAL_INVALID, f"{field}: {first['msg']}", field=field) from error


def _signed(payload: bytes, person: str, key: Path) -> bytes:
    return to_json(sign(APPROVAL_TYPE, payload, key_id=person, key=load_private_key(key)))
