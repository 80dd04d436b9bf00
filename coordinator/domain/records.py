"""A job and its runs as the store hands them out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hansa.contract.states import JobState, RunState


@dataclass(frozen=True, slots=True)
class Contact:
    """Whether a node is connected, and since when that or its absence lasts."""

    connected: bool
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run.

    ``statement`` is the digest of its release statement; ``stored``: that and
    the summary are here; ``empty``: the summary is without a figure.
    """

    run_id: str
    node: str
    dataset: str
    state: RunState
    contact: Contact
    updated_at: datetime
    round: int = 1
    attempt: int = 1
    execution: int = 0
    reason: str = ""
    incident: str = ""
    stored: bool = False
    empty: bool = False
    statement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job with its runs, in the researcher's order of nodes."""

    job_id: str
    submitter: str
    analysis_name: str
    analysis_version: str
    analysis_digest: str
    state: JobState
    quorum: int
    submitted_at: datetime
    not_after: datetime
    runs: tuple[RunRecord, ...]
    cancel_requested: bool = False
    cancel_request_id: str = ""
    ended_at: datetime | None = None

    @property
    def analysis(self) -> str:
        """The analysis as people write it, ``name@version``."""
        return f"{self.analysis_name}@{self.analysis_version}"
