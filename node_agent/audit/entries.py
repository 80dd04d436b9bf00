"""What the audit log records: a closed list, one function each.

``facts`` go into the tree for good: ids, digests, enumerated reasons.
``subjects`` are a person's name or a person's words; the tree holds keyed
hashes of them only. Nothing here comes from inside a dataset.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hansa.contract.decision import ReleaseDecision
from hansa.contract.errors import Reason, RunReason
from hansa.contract.job import JobSpec
from hansa.contract.notes import Checkpoint
from hansa.contract.witnessing import Seen
from hansa.trust.view import TrustView
from node_agent.store.models import ApprovalRow, DatasetRow, RunRow

# An id that came over the wire may be anything; a job's has 36 characters.
_ID_LENGTH: Final = 36


class Action(enum.StrEnum):
    """What was decided. Stable: written into the tree."""

    OFFER_ACCEPTED = "offer_accepted"
    OFFER_DECLINED = "offer_declined"
    OFFER_WAITS = "offer_waits"
    APPROVAL_ADDED = "approval_added"
    APPROVAL_REFUSED = "approval_refused"
    APPROVAL_REVOKED = "approval_revoked"
    JOB_APPROVED = "job_approved"
    JOB_DECLINED = "job_declined"
    RUN_STOPPED = "run_stopped"
    TRUST_IN_FORCE = "trust_in_force"
    TRUST_REFUSED = "trust_refused"
    SESSION_REFUSED = "session_refused"
    DATASET_ADDED = "dataset_added"
    DATASET_REMOVED = "dataset_removed"
    POLICY_CHANGED = "policy_changed"
    EXECUTION_STARTED = "execution_started"
    RELEASE_DECIDED = "release_decided"
    SUMMARY_RELEASED = "summary_released"
    SUMMARY_WITHHELD = "summary_withheld"
    RUN_ENDED = "run_ended"
    COORDINATOR_RESTORED = "coordinator_restored"
    RUN_ADOPTED = "run_adopted"
    STORE_RECONCILED = "store_reconciled"
    COORDINATOR_LOG_FORKED = "coordinator_log_forked"
    COORDINATOR_LOG_ACCEPTED = "coordinator_log_accepted"
    SUBJECTS_ERASED = "subjects_erased"
    STORE_RESTORED = "store_restored"


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


def offer_accepted(run: RunRow, approval_id: str, directory_version: int, passport: str) -> Entry:
    """Return the entry of an offer that was admitted under a standing approval, or one given before.

    Args:
        run: the run, as stored.
        approval_id: the approval.
        directory_version: of the directory that the submitter's key was in.
        passport: the digest of the passport that counts; empty without one.
    """
    facts = {**_of_run(run), "approval": approval_id, "directory": directory_version}
    if passport:
        facts["passport"] = passport
    return Entry(action=Action.OFFER_ACCEPTED, facts=facts, subjects={"submitter": run.submitter})


def offer_waits(run: RunRow, directory_version: int) -> Entry:
    """Return the entry of an offer that is admissible and waits for a data holder."""
    facts = {**_of_run(run), "directory": directory_version}
    return Entry(action=Action.OFFER_WAITS, facts=facts, subjects={"submitter": run.submitter})


def approval_added(row: ApprovalRow) -> Entry:
    """Return the entry of an approval that counts from now on."""
    return Entry(action=Action.APPROVAL_ADDED, facts=_of_approval(row), subjects={"approver": row.approver})


def approval_refused(digest: str, signer: str, reason: Reason, run_id: str = "") -> Entry:
    """Return the entry of an approval that does not count.

    Args:
        digest: of the payload that was handed in.
        signer: whom the envelope names.
        reason: why.
        run_id: the run that it was for; empty for a standing one.
    """
    facts = {"approval_digest": digest, "reason": reason.value, **({"run": run_id} if run_id else {})}
    return Entry(action=Action.APPROVAL_REFUSED, facts=facts, subjects={"approver": signer[:64]})


def approval_revoked(row: ApprovalRow) -> Entry:
    """Return the entry of an approval that counts no more."""
    return Entry(action=Action.APPROVAL_REVOKED, facts=_of_approval(row), subjects={"by": row.revoked_by})


def job_approved(run: RunRow, row: ApprovalRow) -> Entry:
    """Return the entry of a data holder's yes to one job."""
    facts = {**_of_run(run), **_of_approval(row)}
    return Entry(action=Action.JOB_APPROVED, facts=facts, subjects={"approver": row.approver})


def job_declined(run: RunRow, by: str, why: str) -> Entry:
    """Return the entry of a person's no to a job that waited for an approval."""
    return Entry(action=Action.JOB_DECLINED, facts=_of_run(run), subjects={"by": by, "reason": why})


def run_stopped(run: RunRow, reason: RunReason) -> Entry:
    """Return the entry of an admitted run that may not start, or go on, any more."""
    facts = {**_of_run(run), "execution": run.execution, "reason": reason.value}
    return Entry(action=Action.RUN_STOPPED, facts=facts)


def trust_in_force(view: TrustView) -> Entry:
    """Return the entry of another directory, or other analyses, that this node has verified."""
    facts = {"directory": view.directory.version, "targets": view.targets_version, "root": view.root_version}
    return Entry(action=Action.TRUST_IN_FORCE, facts=facts)


def trust_refused(reason: Reason, known: int) -> Entry:
    """Return the entry of metadata that the coordinator served and that does not hold.

    Args:
        reason: why.
        known: the version of the directory that stays in force.
    """
    return Entry(action=Action.TRUST_REFUSED, facts={"reason": reason.value, "directory": known})


def session_refused(reason: Reason) -> Entry:
    """Return the entry of a session that this node ended, because what the coordinator said does not fit."""
    return Entry(action=Action.SESSION_REFUSED, facts={"reason": reason.value})


def _of_approval(row: ApprovalRow) -> dict[str, str | int]:
    return {"approval": row.approval_id, "kind": row.kind, "approval_digest": row.digest}


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


def run_ended(run: RunRow) -> Entry:
    """Return the entry of a run that ended without a decision on a summary: failed, expired, cancelled."""
    facts = {
        **_of_run(run),
        "execution": run.execution,
        "state": run.state,
        "reason": run.reason,
        "incident": run.incident,
    }
    return Entry(action=Action.RUN_ENDED, facts=facts)


def coordinator_restored(generation: int) -> Entry:
    """Return the entry of a coordinator whose store was restored from a backup: it is told again what it forgot."""
    return Entry(action=Action.COORDINATOR_RESTORED, facts={"generation": generation})


def run_adopted(run: RunRow, statement: str) -> Entry:
    """Return the entry of an end that this restored store had forgotten.

    Args:
        run: the run, as it was adopted.
        statement: the digest of our own statement of its release; empty if it ended otherwise.
    """
    facts = {**_of_run(run), "execution": run.execution, "state": run.state, "statement": statement}
    return Entry(action=Action.RUN_ADOPTED, facts=facts)


def store_reconciled(generation: int) -> Entry:
    """Return the entry that this restored store has adopted all that is recorded of its runs."""
    return Entry(action=Action.STORE_RECONCILED, facts={"generation": generation})


def coordinator_log_forked(seen: Seen, told: Checkpoint) -> Entry:
    """Return the entry of a checkpoint of the coordinator's that does not continue what was seen."""
    facts: dict[str, str | int] = {
        "seen_size": seen.size,
        "seen_root": seen.root.hex(),
        "told_size": told.size,
        "told_root": told.root.hex(),
    }
    return Entry(action=Action.COORDINATOR_LOG_FORKED, facts=facts)


def coordinator_log_accepted(taken: Checkpoint, by: str, reason: str) -> Entry:
    """Return the entry of an operator who takes over a coordinator's log that had forked."""
    facts: dict[str, str | int] = {"size": taken.size, "root": taken.root.hex()}
    return Entry(action=Action.COORDINATOR_LOG_ACCEPTED, facts=facts, subjects={"by": by, "reason": reason})


def subjects_erased(indexes: Sequence[int], by: str) -> Entry:
    """Return the entry of an erasure, which says how much was erased and not whose."""
    facts = {"entries": len(indexes), "first": indexes[0], "last": indexes[-1]}
    return Entry(action=Action.SUBJECTS_ERASED, facts=facts, subjects={"by": by})


def _of_run(run: RunRow) -> dict[str, str | int]:
    return {
        "run": run.run_id,
        "job": run.job_id[:_ID_LENGTH],
        "attempt": run.attempt,
        "analysis": run.analysis,
        "dataset": run.dataset,
    }


def store_restored(generation: int, by: str) -> Entry:
    """Return the entry of a store that was restored from a backup: what came after it, the log does not have."""
    return Entry(action=Action.STORE_RESTORED, facts={"generation": generation}, subjects={"by": by})
