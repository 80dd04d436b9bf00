"""What the audit log records: a closed list, one function each.

``facts`` go into the tree for good: ids, digests, enumerated reasons.
``subjects`` are a person's name or a person's words; the tree holds keyed
hashes of them only. Nothing here comes from inside a dataset.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hansa.contract.decision import ReleaseDecision
from hansa.contract.errors import RunReason
from hansa.contract.job import JobSpec
from node_agent.store.models import DatasetRow, RunRow

# An id that came over the wire may be anything; a job's has 36 characters.
_ID_LENGTH: Final = 36


class Action(enum.StrEnum):
    """What was decided. Stable: written into the tree."""

    OFFER_ACCEPTED = "offer_accepted"
    OFFER_DECLINED = "offer_declined"
    DATASET_ADDED = "dataset_added"
    DATASET_REMOVED = "dataset_removed"
    POLICY_CHANGED = "policy_changed"
    EXECUTION_STARTED = "execution_started"
    RELEASE_DECIDED = "release_decided"
    SUMMARY_RELEASED = "summary_released"
    SUMMARY_WITHHELD = "summary_withheld"


class Decider(enum.StrEnum):
    """Whether the rules decided on a summary, or a person."""

    RULES = "rules"
    PERSON = "person"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry, before it has a place and a time. Made by the functions below."""

    action: Action
    facts: Mapping[str, str | int]
    subjects: Mapping[str, str] = field(default_factory=dict)


def offer_accepted(run: RunRow) -> Entry:
    """Return the entry of an offer that was admitted."""
    return Entry(action=Action.OFFER_ACCEPTED, facts=_of_run(run), subjects={"submitter": run.submitter})


def offer_declined(run: RunRow, spec: JobSpec | None, dataset: str, reason: RunReason) -> Entry:
    """Return the entry of an offer that was declined.

    Args:
        run: the run, as stored.
        spec: the job; None if what was offered is none for this node.
        dataset: the dataset that the job names here; the node need not have it.
        reason: why.
    """
    facts = {**_of_run(run), "dataset": dataset, "reason": reason.value}
    return Entry(
        action=Action.OFFER_DECLINED, facts=facts, subjects={} if spec is None else {"submitter": spec.submitter}
    )


def dataset_added(row: DatasetRow) -> Entry:
    """Return the entry of a dataset that the node now offers."""
    return Entry(action=Action.DATASET_ADDED, facts={"dataset": row.dataset_id, "snapshot": row.snapshot})


def dataset_removed(row: DatasetRow) -> Entry:
    """Return the entry of a dataset that the node offers no more."""
    return Entry(action=Action.DATASET_REMOVED, facts={"dataset": row.dataset_id, "snapshot": row.snapshot})


def policy_changed(digest: str, by: str) -> Entry:
    """Return the entry of a policy that comes into force.

    Args:
        digest: the policy's.
        by: who put it in force; empty if the agent found it at its start.
    """
    return Entry(action=Action.POLICY_CHANGED, facts={"policy": digest}, subjects={"by": by} if by else {})


def execution_started(run: RunRow, snapshot: str) -> Entry:
    """Return the entry of a worker that begins to run a job on a snapshot."""
    facts = {**_of_run(run), "execution": run.execution, "snapshot": snapshot}
    return Entry(action=Action.EXECUTION_STARTED, facts=facts)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Who let a summary leave or kept it, and why."""

    decider: Decider
    by: str
    reason: str


def release_decided(run: RunRow, decision: ReleaseDecision, signed_digest: str) -> Entry:
    """Return the entry of an output checker's signed decision.

    Args:
        run: the run whose summary waits.
        decision: what the checker signed.
        signed_digest: of the signed payload.
    """
    facts = {
        **_of_run(run),
        "execution": run.execution,
        "summary": decision.summary_digest,
        "decision": decision.decision,
        "signed": signed_digest,
    }
    subjects = {"by": decision.checker, "reason": decision.reason}
    return Entry(action=Action.RELEASE_DECIDED, facts=facts, subjects=subjects)


def summary_released(run: RunRow, outgoing: bytes, judgement: Judgement) -> Entry:
    """Return the entry of a summary that may leave: exactly the bytes of the digest ``outgoing``."""
    return _decided(Action.SUMMARY_RELEASED, run, f"sha256:{outgoing.hex()}", judgement)


def summary_withheld(run: RunRow, digest: bytes | None, judgement: Judgement) -> Entry:
    """Return the entry of a summary that stays; without a digest if the rules cleared nothing."""
    return _decided(Action.SUMMARY_WITHHELD, run, "" if digest is None else f"sha256:{digest.hex()}", judgement)


def _decided(action: Action, run: RunRow, digest: str, judgement: Judgement) -> Entry:
    facts = {**_of_run(run), "execution": run.execution, "digest": digest, "decider": judgement.decider.value}
    return Entry(action=action, facts=facts, subjects={"by": judgement.by, "reason": judgement.reason})


def _of_run(run: RunRow) -> dict[str, str | int]:
    return {
        "run": run.run_id,
        "job": run.job_id[:_ID_LENGTH],
        "attempt": run.attempt,
        "analysis": run.analysis,
        "dataset": run.dataset,
    }
