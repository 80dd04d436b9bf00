"""How many jobs may be open, so that one person's flood leaves room for everybody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hansa.contract.errors import HansaError, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """The most that may be open at a time.

    Attributes:
        jobs: jobs that have not ended, in all.
        jobs_of_researcher: those of one researcher.
        jobs_of_project: those of one project.
        commands_of_node: commands that wait for one node's acknowledgement.
    """

    jobs: int = 20_000
    jobs_of_researcher: int = 2_000
    jobs_of_project: int = 5_000
    commands_of_node: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is open now; ``waiting`` holds the commands that wait, by node."""

    jobs: int
    jobs_of_researcher: int
    jobs_of_project: int
    waiting: Mapping[str, int]


def check_room(quotas: Quotas, load: Load) -> None:
    """Return if one more job has room.

    Raises:
        HansaError: ``QUOTA_EXCEEDED``, with what is full; ``OVERLOADED``,
            all of the coordinator is.
    """
    if load.jobs_of_researcher >= quotas.jobs_of_researcher:
        raise _full(f"You have {load.jobs_of_researcher} open jobs, as many as one researcher may have.", "submitter")
    if load.jobs_of_project >= quotas.jobs_of_project:
        raise _full(f"The project has {load.jobs_of_project} open jobs, as many as one may have.", "project")
    for node, waiting in sorted(load.waiting.items()):
        if waiting >= quotas.commands_of_node:
            raise _full(f"{node} has not fetched {waiting} commands yet; more are not kept for it.", "datasets")
    if load.jobs >= quotas.jobs:
        raise HansaError(Reason.OVERLOADED, "The coordinator has as many open jobs as it takes.", retry_seconds=10)


def _full(words: str, field: str) -> HansaError:
    return HansaError(Reason.QUOTA_EXCEEDED, words, field=field)
