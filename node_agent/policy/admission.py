"""Whether a node takes an offered job: pure decisions, in one order.

Cheap questions come first, and who asks before what is asked, so that a
stranger learns nothing about the node's datasets. No answer depends on a
person's data, and none on the coordinator's word: the job is judged by the
bytes that its researcher signed, the directory that the node has verified, and
the node's own policy and approvals.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from hansa.contract.approval import Approval
from hansa.contract.digests import digest
from hansa.contract.directory import Directory, DirectoryPerson, Role
from hansa.contract.envelope import JOB_TYPE, PASSPORT_ADDENDUM_TYPE, Signed, verify
from hansa.contract.errors import HansaError, RunReason
from hansa.contract.ids import run_id
from hansa.contract.job import DatasetRef, JobSpec, check_window, parse_job
from hansa.contract.manifest import Limits, Manifest, check_parameters
from hansa.contract.passport import PassportAddendum, parse_addendum
from hansa.contract.raw_keys import signing_key
from hansa.trust.view import TrustView
from node_agent.policy.approvals import (
    HeldApproval,
    QuestionSize,
    Site,
    checked_approval,
    large_enough,
    question_size,
    speaks_of,
)
from node_agent.policy.policy import Policy

# Further ones are not read: a job's passport is renewed a few times at most.
_MOST_ADDENDA: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """An offer as it came: the job's envelope, the run's name, and later passports."""

    run_id: str
    job_id: str
    round: int
    signed: Signed
    addenda: Sequence[Signed] = ()


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """A dataset of this node: its id and the digest of its pinned snapshot."""

    dataset_id: str
    snapshot: str


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """The public halves of the node's own keys, as the directory writes them."""

    signing: str
    agreement: str


class Seen(enum.Enum):
    """What the replay ledger says of a job."""

    NEVER = enum.auto()
    SAME = enum.auto()  # these bytes, for a run that is known
    OTHER = enum.auto()  # its id or nonce stood in other bytes, or its run is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What the decision depends on, besides the job.

    ``manifest`` is that of the installed analysis that the job names,
    ``dataset`` is the one it names here; None where this node has none.
    ``approvals`` are those that may speak of the job, ``queued`` counts the
    runs that have not started, ``queued_of_project`` those of the job's project. ``judged_before`` says that the job was taken
    by this node at an earlier time: then neither the ledger, nor the age of the
    directory that its researcher knew, nor capacity is asked again, nor the
    clock, which is ``clock_wrong`` where it and the coordinator's differ too much.
    """

    site: Site
    policy: Policy
    now: datetime
    trust: TrustView | None
    keys: NodeKeys | None
    seen: Seen = Seen.NEVER
    alarmed: bool = False
    clock_wrong: bool = False
    manifest: Manifest | None = None
    dataset: LocalDataset | None = None
    approvals: Sequence[HeldApproval] = ()
    queued: int = 0
    queued_of_project: int = 0
    draining: bool = False
    judged_before: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """The job may run, with these parameters in normal form, within these limits.

    ``approval`` is the one that covers it; None where a data holder has to be
    asked first. ``passport`` is the digest of the passport that counts.
    """

    limits: Limits
    parameters: Mapping[str, str]
    approval: HeldApproval | None = None
    passport: str = ""


@dataclass(frozen=True, slots=True)
class Declined:
    """The job does not run here. ``authentic``: its submitter has signed it, though."""

    reason: RunReason
    authentic: bool = field(default=False, compare=False)


def identify(offered: Offered, site: Site) -> JobSpec | None:
    """Return the job if it is one, for this node of this federation, and names this run."""
    if offered.signed.payload_type != JOB_TYPE:
        return None
    try:
        spec = parse_job(offered.signed.payload)
        spec.not_after.astimezone(UTC)
        spec.not_before.astimezone(UTC)
    except (HansaError, OverflowError):
        return None
    here = spec.federation == site.federation and site.node in spec.nodes
    named = spec.job_id == offered.job_id and 1 <= offered.round <= spec.rounds
    return spec if here and named and offered.run_id == run_id(spec.job_id, site.node, offered.round) else None


def admit(spec: JobSpec, offered: Offered, view: NodeView) -> Admitted | Declined:
    """Return what this node answers to the offer of ``spec``, which ``identify`` has returned."""
    refusal = (
        _clock(view)
        or _window(spec, view.now)
        or _replay(view)
        or _directory(spec, view)
        or _author(spec, offered.signed, view)
    )
    if refusal is not None:
        return Declined(refusal)
    trust = _in_force(view)
    refusal = _project(spec, trust.directory, view) or _recipient(spec, trust.directory) or _analysis(spec, trust)
    if refusal is not None or view.manifest is None:
        return Declined(refusal or RunReason.ANALYSIS_NOT_ADMITTED, authentic=True)
    asked = _asked(spec, view.manifest, view)
    if isinstance(asked, RunReason):
        return Declined(asked, authentic=True)
    passport = _passport(spec, offered, trust.directory, view.site.node)
    if view.policy.admission.require_passport and not passport:
        return Declined(RunReason.PASSPORT_MISSING, authentic=True)
    size = question_size(view.manifest, asked)
    approval = _approval(spec, offered.signed.payload, view, size)
    return Admitted(view.policy.limits.bound(view.manifest.limits), asked, approval, passport)


@dataclass(frozen=True, slots=True)
class Taken:
    """An approval under which a run was admitted, at ``at``; None if it is revoked."""

    approval: HeldApproval | None
    at: datetime


def still_stands(
    spec: JobSpec, signed: Signed, view: NodeView, *, taken: Sequence[Taken], starting: bool
) -> RunReason | None:
    """Return why an admitted job may not start, or go on, any more; None if it may.

    Expired metadata stops what would start, not what runs: its signers have
    revoked nothing. A person, an analysis or an approval that is revoked, or
    that the node's own policy admits no more, stops both.

    Args:
        spec: the job.
        signed: its envelope.
        view: what the node knows now.
        taken: the approvals under which the run was admitted.
        starting: whether an execution is about to begin.
    """
    if view.trust is None:
        return RunReason.TRUST_EXPIRED
    refusal = _alarm(view) or (_fresh(view.trust, view.now) if starting else None) or _member(view.trust, view)
    refusal = refusal or _author(spec, signed, view) or _policy(spec, view.policy)
    directory = view.trust.directory
    refusal = refusal or _project(spec, directory, view) or _recipient(spec, directory) or _analysis(spec, view.trust)
    if refusal is not None:
        return refusal
    holds = any(
        one.approval is not None
        and _counts(one.approval, spec, signed.payload, view, at=view.now if starting else one.at) is not None
        for one in taken
    )
    return None if holds else RunReason.APPROVAL_REFUSED


def _clock(view: NodeView) -> RunReason | None:
    """Judge whether time can be judged at all: deadlines, approvals and metadata are judged by it."""
    return RunReason.CLOCK_WRONG if view.clock_wrong and not view.judged_before else None


def _window(spec: JobSpec, now: datetime) -> RunReason | None:
    if spec.not_after <= now:
        return RunReason.DEADLINE_PASSED
    try:
        check_window(spec, now)
    except HansaError:
        return RunReason.JOB_INVALID
    return None


def _replay(view: NodeView) -> RunReason | None:
    return RunReason.JOB_REPLAYED if view.seen is Seen.OTHER and not view.judged_before else None


def _directory(spec: JobSpec, view: NodeView) -> RunReason | None:
    """Judge what the researcher knew of the federation against what this node knows."""
    alarm = _alarm(view)
    if alarm is not None:
        return alarm
    trust = view.trust
    if trust is None:
        return RunReason.DIRECTORY_BEHIND
    if not view.judged_before:
        if spec.directory_version < trust.directory.version:
            return RunReason.DIRECTORY_ROLLBACK
        if spec.directory_version > trust.directory.version:
            return RunReason.DIRECTORY_BEHIND
    return _fresh(trust, view.now) or _member(trust, view)


def _alarm(view: NodeView) -> RunReason | None:
    return RunReason.LOG_FORKED if view.alarmed else None


def _fresh(trust: TrustView, now: datetime) -> RunReason | None:
    return None if now < trust.expires else RunReason.TRUST_EXPIRED


def _member(trust: TrustView, view: NodeView) -> RunReason | None:
    return None if is_member(trust, view.site, view.keys) else RunReason.NODE_NOT_IN_DIRECTORY


def is_member(trust: TrustView, site: Site, keys: NodeKeys | None) -> bool:
    """Say whether the directory is of this node's federation and has the node with exactly these keys."""
    entry = trust.directory.node(site.node)
    if trust.directory.federation != site.federation or entry is None or keys is None:
        return False
    return (entry.signing_key, entry.agreement_key) == (keys.signing, keys.agreement)


def _in_force(view: NodeView) -> TrustView:
    if view.trust is None:  # _directory has answered before
        raise ValueError("no trust in force")
    return view.trust


def _author(spec: JobSpec, signed: Signed, view: NodeView) -> RunReason | None:
    person = _in_force(view).directory.person(spec.submitter)
    if person is None or not person.has(Role.RESEARCHER):
        return RunReason.SUBMITTER_NOT_ADMITTED
    if signed.key_id != person.name:
        return RunReason.SIGNATURE_INVALID
    try:
        verify(signed, payload_type=JOB_TYPE, key=signing_key(person.signing_key))
    except HansaError:
        return RunReason.SIGNATURE_INVALID
    return None


def _project(spec: JobSpec, directory: Directory, view: NodeView) -> RunReason | None:
    project = directory.project(spec.project)
    ref = spec.dataset_at(view.site.node)
    if (
        project is None
        or project.valid_until <= view.now
        or spec.submitter not in project.researchers
        or f"{spec.analysis.name}@{spec.analysis.version}" not in project.analyses
        or f"{ref.node}/{ref.dataset}" not in project.datasets
    ):
        return RunReason.PROJECT_NOT_ADMITTED
    return RunReason.SEALING_REQUIRED if project.sealed and spec.recipient_key is None else None


def _recipient(spec: JobSpec, directory: Directory) -> RunReason | None:
    person = directory.person(spec.submitter)
    if spec.recipient_key is None or (person is not None and person.recipient_key == spec.recipient_key):
        return None
    return RunReason.RECIPIENT_MISMATCH


def _analysis(spec: JobSpec, trust: TrustView) -> RunReason | None:
    analysis = trust.analyses.get(f"{spec.analysis.name}@{spec.analysis.version}")
    if analysis is None or analysis.digest != spec.analysis.digest or not analysis.count.approved:
        return RunReason.ANALYSIS_NOT_ADMITTED
    return None


def _asked(spec: JobSpec, manifest: Manifest, view: NodeView) -> Mapping[str, str] | RunReason:
    """Return the parameters in normal form, or why the node's own policy declines."""
    refusal = _policy(spec, view.policy) or _dataset(spec.dataset_at(view.site.node), view.dataset)
    if refusal is not None:
        return refusal
    try:
        parameters = check_parameters(manifest, spec.parameters)
    except HansaError:
        return RunReason.PARAMETER_INVALID
    too_much = _too_much(question_size(manifest, parameters), view.policy)
    return too_much or _busy(view) or parameters


def _policy(spec: JobSpec, policy: Policy) -> RunReason | None:
    if not policy.admits_submitter(spec.submitter):
        return RunReason.SUBMITTER_NOT_ADMITTED
    if not policy.admits_analysis(spec.analysis.name, spec.analysis.version):
        return RunReason.ANALYSIS_NOT_ADMITTED
    return None


def _dataset(ref: DatasetRef, dataset: LocalDataset | None) -> RunReason | None:
    if dataset is None or dataset.dataset_id != ref.dataset:
        return RunReason.DATASET_NOT_OFFERED
    return None if dataset.snapshot == ref.snapshot else RunReason.SNAPSHOT_CHANGED


def _too_much(size: QuestionSize, policy: Policy) -> RunReason | None:
    if size.region_bases > policy.admission.max_region_bases:
        return RunReason.REGION_TOO_LARGE
    return RunReason.TOO_MANY_VARIANTS if size.variants > policy.admission.max_variants else None


def _busy(view: NodeView) -> RunReason | None:
    if view.judged_before:
        return None
    if view.draining:
        return RunReason.NODE_DRAINING
    most = view.policy.admission.max_queued_runs
    # Half of the places at most, so that one project's flood leaves the others room to wait.
    is_full = view.queued >= most or view.queued_of_project >= (most + 1) // 2
    return RunReason.NODE_BUSY if is_full else None


def _passport(spec: JobSpec, offered: Offered, directory: Directory, node: str) -> str:
    """Return the digest of the passport that counts here: the newest addendum's, else the job's."""
    person = directory.person(spec.submitter)
    found = [
        addendum
        for signed in offered.addenda[:_MOST_ADDENDA]
        if person is not None and (addendum := _addendum(signed, person)) is not None
        if (addendum.job_id, addendum.job_digest, addendum.node) == (spec.job_id, digest(offered.signed.payload), node)
    ]
    if not found:
        return spec.passports.get(node, "")
    return max(found, key=lambda addendum: addendum.at).passport_digest


def _addendum(signed: Signed, person: DirectoryPerson) -> PassportAddendum | None:
    if signed.key_id != person.name:
        return None
    try:
        verify(signed, payload_type=PASSPORT_ADDENDUM_TYPE, key=signing_key(person.signing_key))
        return parse_addendum(signed.payload)
    except HansaError:
        return None


def _approval(spec: JobSpec, payload: bytes, view: NodeView, size: QuestionSize) -> HeldApproval | None:
    for held in view.approvals:
        found = _counts(held, spec, payload, view, at=view.now)
        if found is not None and large_enough(found, size):
            return held
    return None


def _counts(held: HeldApproval, spec: JobSpec, payload: bytes, view: NodeView, *, at: datetime) -> Approval | None:
    """Return the approval if it counts here, and speaks of this job at that time."""
    try:
        found = checked_approval(held.signed, site=view.site, directory=_in_force(view).directory, policy=view.policy)
    except HansaError:
        return None
    return found if speaks_of(found, spec, payload, at) else None
