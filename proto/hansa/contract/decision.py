"""An output checker's decision on one summary, signed with their own key."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime

from hansa.contract.digests import DIGEST
from hansa.contract.directory import NodeName, PersonName
from hansa.contract.errors import Reason
from hansa.contract.strict import Strict, parse_strict, pattern, to_bytes

_DECISION_BYTES: Final = 16 << 10


class ReleaseDecision(Strict):
    """The payload, of type ``DECISION_TYPE``. It binds to the summary's digest, so that it fits no other."""

    v: Literal[1] = 1
    node: NodeName
    run_id: Annotated[str, pattern("[0-9a-f]{32}")]
    # SHA-256 of the summary's bytes as the checker saw them (before sealing).
    summary_digest: Annotated[str, pattern(DIGEST.pattern)]
    decision: Literal["RELEASE", "WITHHOLD"]
    reason: Annotated[str, pattern(r"[\x20-\x7e]{1,1000}")]
    checker: PersonName
    at: AwareDatetime

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the checker."""
        return to_bytes(self)


def parse_decision(payload: bytes) -> ReleaseDecision:
    """Return the decision in ``payload``.

    Raises:
        HansaError: ``DECISION_INVALID``.
    """
    return parse_strict(
        ReleaseDecision, payload, reason=Reason.DECISION_INVALID, what="decision", most_bytes=_DECISION_BYTES
    )
