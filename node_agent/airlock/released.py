"""The one type that fits through the way out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

from hansa.contract.envelope import from_json
from hansa.contract.errors import HansaError
from hansa.contract.receipt import subject_digest
from hansa.contract.statement import parse_statement
from node_agent.store.models import SummaryRow


@final
@dataclass(frozen=True, slots=True)
class ReleasedSummary:
    """The bytes that leave, with the decision that lets them and a signed statement of just these.

    Made by ``released_summary`` alone; the upload takes no other type.
    """

    run_id: str
    attempt: int
    execution: int
    summary: bytes
    digest: bytes


class NotReleasedError(Exception):
    """The row holds no decision to release, or no statement of these bytes."""


def released_summary(row: SummaryRow) -> ReleasedSummary:
    """Return what may leave of ``row``.

    Raises:
        NotReleasedError: nobody has decided to release it, or the bytes are
            not those that the signed statement speaks of.
    """
    if row.decision != "RELEASE" or row.outgoing is None or row.statement is None:
        raise NotReleasedError(row.run_id)
    found = hashlib.sha256(row.outgoing).digest()
    try:
        statement = parse_statement(from_json(row.statement).payload)
    except HansaError as error:
        raise NotReleasedError(row.run_id) from error
    predicate = statement.predicate
    named = (predicate.run_id, predicate.attempt, predicate.execution)
    if subject_digest(statement) != found.hex() or named != (row.run_id, row.attempt, row.execution):
        raise NotReleasedError(row.run_id)
    return ReleasedSummary(row.run_id, row.attempt, row.execution, row.outgoing, found)
