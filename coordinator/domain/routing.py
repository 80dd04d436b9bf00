"""Whether the nodes that a job names can be asked what it asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.domain.membership import NodeState
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
