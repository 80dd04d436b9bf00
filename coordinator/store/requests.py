"""First answers, for calls that are made again. Works inside the caller's transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.orm import Session

from coordinator.store.people_models import RequestRow
from hansa.contract.delivery import repeat
from hansa.contract.errors import HansaError, Reason


@dataclass(frozen=True, slots=True)
class Request:
    """A mutating call: who makes it, under which id, and its bytes."""

    caller: str
    request_id: str
    method: str
    body: bytes


def answer_once(session: Session, request: Request, now: datetime, make: Callable[[], bytes]) -> bytes:
    """Return the first answer to ``request``, making it if there is none.

    The answer is stored in the transaction that does the work; refusals are
    not stored, so that a call may succeed later under the same id. No secret
    may stand in an answer.

    Raises:
        HansaError: ``IDEMPOTENCY_MISMATCH``; the caller used the id for
            something else.
    """
    first = first_answer(session, request)
    if first is not None:
        return first
    response = make()
    session.add(
        RequestRow(
            caller=request.caller,
            request_id=request.request_id,
            method=request.method,
            digest=_digest(request),
            response=response,
            at=now,
        )
    )
    session.flush()
    return response


def first_answer(session: Session, request: Request) -> bytes | None:
    """Return the first answer to ``request``, if there is one.

    Raises:
        HansaError: ``IDEMPOTENCY_MISMATCH``; the caller used the id for
            something else.
    """
    row = session.get(RequestRow, (request.caller, request.request_id))
    if row is None:
        return None
    if row.method != request.method:
        raise HansaError(Reason.IDEMPOTENCY_MISMATCH, field="request_id")
    repeat(row.digest, _digest(request), field="request_id")
    return row.response


def _digest(request: Request) -> bytes:
    return hashlib.sha256(request.body).digest()


def forget_requests(session: Session, *, before: datetime) -> None:
    """Drop the answers to calls that were made before a time."""
    session.execute(delete(RequestRow).where(RequestRow.at < before))
