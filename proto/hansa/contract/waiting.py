"""What an open run waits for, in words for people: the same at the coordinator and at the node.

The words depend on the enumerated state alone; no text of a run is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from hansa.contract.states import RunState

WAITS_FOR: Final[Mapping[RunState, str]] = {
    RunState.OFFERED: "has not answered the offer yet",
    RunState.ACCEPTED: "accepted",
    RunState.AWAITING_APPROVAL: "waits for the data holder's approval",
    RunState.QUEUED: "queued",
    RunState.STAGING: "prepares the data",
    RunState.RUNNING: "runs",
    RunState.CHECKING: "checks the summary",
    RunState.AWAITING_RELEASE: "waits for an output checker",
    RunState.CANCELLING: "is cancelling",
}


def since(moment: datetime | None) -> str:
    """Return since when something lasts, for people; ``so far`` where it never was otherwise."""
    return "so far" if moment is None else f"since {moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
