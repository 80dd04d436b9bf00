"""Whether a node takes an offered job: one pure decision.

Cheap questions come first, and who asks before what is asked, so that a
stranger learns nothing about the node's datasets. No answer depends on a
person's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hansa.contract.errors import HansaError, RunReason
from hansa.contract.job import DatasetRef, JobSpec, check_window
from hansa.contract.manifest import Limits, Manifest, RegionParameter, VariantsParameter, check_parameters
from hansa.contract.variants import parse_region
from node_agent.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """A dataset of this node: its id and the digest of its pinned snapshot."""

    dataset_id: str
    snapshot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What the decision depends on, besides the job.

    ``manifest`` and ``analysis_digest`` are those of the installed analysis
    that the job names, ``dataset`` is the one it names here; None where this
    node has none. ``queued`` counts the runs that have not started.
    """

    node: str
    policy: Policy
    manifest: Manifest | None
    analysis_digest: str
    dataset: LocalDataset | None
    now: datetime
    queued: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """The job may run, with these parameters in normal form, within these limits."""

    limits: Limits
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Declined:
    """The job does not run here."""

    reason: RunReason


def admit(spec: JobSpec, view: NodeView) -> Admitted | Declined:
    """Return what this node answers to the offer of ``spec``.

    Whether the submitter signed it is not judged here: the coordinator has
    verified the signature, and a node cannot until it has a pinned directory.
    """
    try:
        ref = spec.dataset_at(view.node)
    except KeyError:
        return Declined(RunReason.JOB_INVALID)
    refusal = _busy(view) or _window(spec, view.now) or _standing(spec, view) or _dataset(ref, view.dataset)
    if refusal is not None:
        return Declined(refusal)
    if view.manifest is None:
        return Declined(RunReason.ANALYSIS_NOT_ADMITTED)
    try:
        parameters = check_parameters(view.manifest, spec.parameters)
    except HansaError:
        return Declined(RunReason.PARAMETER_INVALID)
    too_much = _size(view.manifest, parameters, view.policy)
    if too_much is not None:
        return Declined(too_much)
    return Admitted(view.policy.limits.bound(view.manifest.limits), parameters)


def _busy(view: NodeView) -> RunReason | None:
    if view.draining:
        return RunReason.NODE_DRAINING
    if view.queued >= view.policy.admission.max_queued_runs:
        return RunReason.NODE_BUSY
    return None


def _window(spec: JobSpec, now: datetime) -> RunReason | None:
    if spec.not_after <= now:
        return RunReason.DEADLINE_PASSED
    try:
        check_window(spec, now)
    except HansaError:
        return RunReason.JOB_INVALID
    return None


def _standing(spec: JobSpec, view: NodeView) -> RunReason | None:
    if not view.policy.admits_submitter(spec.submitter):
        return RunReason.SUBMITTER_NOT_ADMITTED
    if not view.policy.admits_analysis(spec.analysis.name, spec.analysis.version):
        return RunReason.ANALYSIS_NOT_ADMITTED
    # The digest is of our own copy: what the coordinator calls by this name is nothing to us.
    if spec.analysis.digest != view.analysis_digest:
        return RunReason.ANALYSIS_NOT_ADMITTED
    return None


def _dataset(ref: DatasetRef, dataset: LocalDataset | None) -> RunReason | None:
    if dataset is None or dataset.dataset_id != ref.dataset:
        return RunReason.DATASET_NOT_OFFERED
    return None if dataset.snapshot == ref.snapshot else RunReason.SNAPSHOT_CHANGED


def _size(manifest: Manifest, parameters: Mapping[str, str], policy: Policy) -> RunReason | None:
    for name, value in parameters.items():
        match manifest.parameters[name]:
            case RegionParameter() if parse_region(value).length > policy.admission.max_region_bases:
                return RunReason.REGION_TOO_LARGE
            case VariantsParameter() if value.count(",") + 1 > policy.admission.max_variants:
                return RunReason.TOO_MANY_VARIANTS
            case _:
                pass
    return None
