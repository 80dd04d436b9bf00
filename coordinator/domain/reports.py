"""What the coordinator takes over from a node's report about a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.domain.frames import Offered, RunReported
from coordinator.domain.records import RunRecord
from hansa.contract.digests import DIGEST
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.ids import DATASET_ID
from hansa.contract.limits import MAX_DATASETS
from hansa.contract.states import RUN_TERMINAL, RunState, follow

_INCIDENT: Final = re.compile(r"[A-Z0-9-]{1,32}")
_BUILDS: Final = frozenset({"GRCh37", "GRCh38"})
_REASONS: Final = frozenset(RunReason)


@dataclass(frozen=True, slots=True)
class RunChange:
    """What is written of a run after a report."""

    state: RunState
    execution: int
    reason: str
    incident: str


def run_change(known: RunRecord, report: RunReported) -> RunChange | None:
    """Return what the report changes; None if nothing.

    Reports about another attempt or an older execution are late and change
    nothing. A reason that is no ``RunReason`` and an incident that is no
    number are dropped: a node's text never reaches a researcher.
    """
    if report.attempt != known.attempt or report.execution < known.execution:
        return None
    state = follow(known.state, report.state)
    if known.state in RUN_TERMINAL or state is RunState.OFFERED:
        return None
    follows = state is report.state
    change = RunChange(
        state=state,
        execution=report.execution,
        reason=report.reason if follows and report.reason in _REASONS else "",
        incident=report.incident if follows and _INCIDENT.fullmatch(report.incident) else "",
    )
    same = (known.state, known.execution, known.reason, known.incident)
    return None if (change.state, change.execution, change.reason, change.incident) == same else change


def check_inventory(node: str, datasets: Sequence[Offered]) -> None:
    """Return if ``node`` may announce ``datasets``.

    Raises:
        HansaError: ``NODE_MISMATCH``, a dataset is said to be another node's;
            ``PROTOCOL_VIOLATION``, too many, one twice, or one whose id,
            build or snapshot has not its shape.
    """
    if len(datasets) > MAX_DATASETS or len({offered.dataset_id for offered in datasets}) != len(datasets):
        raise HansaError(Reason.PROTOCOL_VIOLATION, "The inventory names a dataset twice or is too long.")
    for offered in datasets:
        if offered.node not in ("", node):
            raise HansaError(Reason.NODE_MISMATCH, "The inventory names another node's dataset.")
        if not (
            DATASET_ID.fullmatch(offered.dataset_id) and offered.build in _BUILDS and DIGEST.fullmatch(offered.snapshot)
        ):
            raise HansaError(Reason.PROTOCOL_VIOLATION, "The inventory holds a malformed dataset.")
