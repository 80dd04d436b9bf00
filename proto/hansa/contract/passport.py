"""A passport sent after its job was signed: the researcher's word that it takes the older one's place.

Only digests are named here. Passports expire sooner than jobs do; a fresh one
needs no new job, and nobody but the submitter can put one under theirs.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime

from hansa.contract.digests import DIGEST
from hansa.contract.directory import NodeName
from hansa.contract.errors import Reason
from hansa.contract.strict import Strict, parse_strict, pattern, to_bytes

_ADDENDUM_BYTES: Final = 16 << 10
_ID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class PassportAddendum(Strict):
    """The payload, of type ``PASSPORT_ADDENDUM_TYPE``: for one job at one node."""

    v: Literal[1] = 1
    job_id: Annotated[str, pattern(_ID)]
    # Of the job's signed payload.
    job_digest: Annotated[str, pattern(DIGEST.pattern)]
    node: NodeName
    passport_digest: Annotated[str, pattern(DIGEST.pattern)]
    at: AwareDatetime

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the researcher's client."""
        return to_bytes(self)


def parse_addendum(payload: bytes) -> PassportAddendum:
    """Return the addendum in ``payload``.

    Raises:
        HansaError: ``ENVELOPE_INVALID``.
    """
    return parse_strict(
        PassportAddendum,
        payload,
        reason=Reason.ENVELOPE_INVALID,
        what="passport addendum",
        most_bytes=_ADDENDUM_BYTES,
    )
