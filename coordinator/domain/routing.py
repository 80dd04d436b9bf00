"""Whether the nodes that a job names can be asked what it asks.

The nodes judge all of it again, each by its own copy of the directory: this is
for good errors early, and protects nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from coordinator.domain.membership import NodeState
from hansa.contract.directory import Directory, DirectoryProject
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.manifest import Manifest, check_parameters

# What a researcher is told of a node that may take no part.
_REFUSALS: Final[Mapping[NodeState, Reason]] = {
    NodeState.SUSPENDED: Reason.NODE_SUSPENDED,
    NodeState.QUARANTINED: Reason.NODE_QUARANTINED,
    NodeState.REVOKED: Reason.NODE_REVOKED,
}


@dataclass(frozen=True, slots=True)
class Holding:
    """A dataset as its node announced it last."""

    build: str
    snapshot: str


def check_project(spec: JobSpec, directory: Directory, now: datetime) -> None:
    """Return if the directory in force has all that the job names, and the project allows it.

    Raises:
        HansaError: ``ENVELOPE_INVALID``, ``DIRECTORY_CHANGED``,
            ``NODE_UNKNOWN`` or ``PROJECT_NOT_ADMITTED``, with the field.
    """
    if spec.federation != directory.federation:
        raise HansaError(
            Reason.ENVELOPE_INVALID, f"The job is for the federation {spec.federation}.", field="federation"
        )
    if spec.directory_version != directory.version:
        raise HansaError(
            Reason.DIRECTORY_CHANGED,
            f"The job names version {spec.directory_version} of the directory, but {directory.version} is in force; "
            "submit the job again.",
            field="directory_version",
        )
    for node in spec.nodes:
        if directory.node(node) is None:
            raise HansaError(Reason.NODE_UNKNOWN, f"The directory has no node {node}.", field="datasets")
    project = directory.project(spec.project)
    if project is None or spec.submitter not in project.researchers:
        # One answer: what projects there are is told to who reads the directory, not to who guesses.
        raise _not_admitted(f"You are not a researcher of a project {spec.project}.", "project")
    _check_scope(spec, project, now)
    person = directory.person(spec.submitter)
    if spec.recipient_key is not None and (person is None or person.recipient_key != spec.recipient_key):
        raise HansaError(
            Reason.ENVELOPE_INVALID, "The recipient key is not the one that the directory has.", field="recipient_key"
        )


def _check_scope(spec: JobSpec, project: DirectoryProject, now: datetime) -> None:
    if project.valid_until <= now:
        raise _not_admitted(f"The project {project.project} ended {project.valid_until:%Y-%m-%d}.", "project")
    analysis = f"{spec.analysis.name}@{spec.analysis.version}"
    if analysis not in project.analyses:
        raise _not_admitted(f"The project {project.project} does not have the analysis {analysis}.", "analysis")
    for ref in spec.datasets:
        if f"{ref.node}/{ref.dataset}" not in project.datasets:
            words = f"The project {project.project} does not have the dataset {ref.dataset} at {ref.node}."
            raise _not_admitted(words, "datasets")
    if project.sealed and spec.recipient_key is None:
        words = f"The project {project.project} wants summaries sealed to the researcher."
        raise _not_admitted(words, "recipient_key")


def _not_admitted(words: str, field: str) -> HansaError:
    return HansaError(Reason.PROJECT_NOT_ADMITTED, words, field=field)


def check_route(
    spec: JobSpec, node_states: Mapping[str, NodeState], holdings: Mapping[tuple[str, str], Holding]
) -> None:
    """Return if every node of the job is active and holds what the job names.

    Args:
        spec: the job.
        node_states: state by node, for the nodes that there are.
        holdings: what the nodes announced, by node and dataset id.

    Raises:
        HansaError: ``NODE_UNKNOWN`` or the node's state, ``DATASET_UNKNOWN``,
            ``SNAPSHOT_CHANGED`` or ``BUILD_MISMATCH``.
    """
    builds = {_check_dataset(ref, node_states, holdings).build for ref in spec.datasets}
    if len(builds) > 1:
        raise HansaError(
            Reason.BUILD_MISMATCH,
            f"The datasets of a job must be of one genome build; these are of {', '.join(sorted(builds))}.",
            field="datasets",
        )


def _check_dataset(
    ref: DatasetRef, node_states: Mapping[str, NodeState], holdings: Mapping[tuple[str, str], Holding]
) -> Holding:
    if ref.node not in node_states:
        raise HansaError(Reason.NODE_UNKNOWN, f"There is no node {ref.node}.", field="datasets")
    state = node_states[ref.node]
    if state is not NodeState.ACTIVE:
        refusal = _REFUSALS.get(state, Reason.NODE_NOT_CONFIRMED)
        raise HansaError(refusal, f"The node {ref.node} takes no jobs now.", field="datasets")
    holding = holdings.get((ref.node, ref.dataset))
    if holding is None:
        raise HansaError(
            Reason.DATASET_UNKNOWN,
            f"The node {ref.node} offers no dataset {ref.dataset}; see `hansa datasets list`.",
            field="datasets",
        )
    if holding.snapshot != ref.snapshot:
        raise HansaError(
            Reason.SNAPSHOT_CHANGED,
            f"The dataset {ref.dataset} at {ref.node} has a new snapshot; submit the job again.",
            field="datasets",
        )
    return holding


def check_request(spec: JobSpec, manifest: Manifest, digest: str) -> None:
    """Return if the job asks for the analysis that the catalogue holds, rightly.

    The parameters must stand in their normal form already: what was signed is
    what runs, nobody rewrites it on the way.

    Raises:
        HansaError: ``ANALYSIS_UNKNOWN`` (another bundle), or what
            ``check_parameters`` raises.
    """
    if spec.analysis.digest != digest:
        raise HansaError(
            Reason.ANALYSIS_UNKNOWN,
            f"{spec.analysis.name} {spec.analysis.version} is published with another digest.",
            field="analysis",
        )
    normal = check_parameters(manifest, spec.parameters)
    for name, value in normal.items():
        if spec.parameters[name] != value:
            raise HansaError(Reason.PARAMETER_INVALID, f"{name} is not in its normal form.", field=name)
