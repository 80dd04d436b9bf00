"""Offers and what a node knows, in memory: a job that is admitted, and each ground on which it would not be.

The grounds stand in the order in which a node asks. They can be combined, but
for the few that exclude each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from hansa.contract.directory import Directory, Role
from hansa.contract.envelope import Signed
from hansa.contract.errors import RunReason
from hansa.contract.ids import run_id
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.manifest import Manifest, parse_manifest
from hansa.trust.view import TrustView
from node_agent.policy.admission import (
    Admitted,
    Declined,
    LocalDataset,
    NodeKeys,
    NodeView,
    Offered,
    Seen,
    admit,
    identify,
)
from node_agent.policy.approvals import HeldApproval, Site
from node_agent.policy.policy import policy_of
from tests.support.agent import (
    BUNDLE,
    FEDERATION,
    NODE,
    OPEN_POLICY,
    SNAPSHOT,
    START,
    approved_by,
    job,
    make_world,
    signed_as,
    standing,
)

MANIFEST: Final[Manifest] = parse_manifest(BUNDLE["manifest.json"])
SITE: Final = Site(FEDERATION, NODE)


@cache
def base_trust() -> TrustView:
    """Return what a federation of FI and ES says at ``START``."""
    with tempfile.TemporaryDirectory() as folder:
        return make_world(Path(folder) / "analysis").view


@cache
def held_approval() -> HeldApproval:
    """Return the standing approval of FI's data holder."""
    approval = standing()
    return HeldApproval(approval.approval_id, "sha256:" + "0" * 64, approved_by(approval))


@dataclass
class Case:
    """An offer and a node's knowledge; grounds change it before it is judged."""

    job: dict[str, Any] = field(default_factory=dict)
    offered: dict[str, Any] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)
    trust: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, dict[str, Any]] = field(default_factory=lambda: {k: dict(v) for k, v in OPEN_POLICY.items()})
    directory: list[Callable[[Directory], Directory]] = field(default_factory=list)
    envelope: Callable[[JobSpec], Signed] = signed_as
    blind: bool = False

    def spec(self) -> JobSpec:
        """Return the job."""
        return job(**self.job)

    def offer(self, spec: JobSpec) -> Offered:
        """Return the job as it is offered."""
        values = {
            "run_id": run_id(spec.job_id, NODE, 1),
            "job_id": spec.job_id,
            "round": 1,
            "signed": self.envelope(spec),
        }
        return Offered(**{**values, **self.offered})

    def node_view(self) -> NodeView:
        """Return what the node knows."""
        trust: TrustView | None = None
        if not self.blind:
            directory = base_trust().directory
            for change in self.directory:
                directory = change(directory)
            trust = replace(base_trust(), **{"directory": directory, **self.trust})
        entry = base_trust().directory.node(NODE)
        assert entry is not None
        values: dict[str, Any] = {
            "site": SITE,
            "policy": policy_of(self.policy),
            "now": START,
            "trust": trust,
            "keys": NodeKeys(entry.signing_key, entry.agreement_key),
            "manifest": MANIFEST,
            "dataset": LocalDataset("FI-lct", SNAPSHOT),
            "approvals": (held_approval(),),
        }
        return NodeView(**{**values, **self.view})

    def answer(self) -> Admitted | Declined:
        """Judge the offer as a node does."""
        spec = self.spec()
        offered, view = self.offer(spec), self.node_view()
        known = identify(offered, SITE)
        return Declined(RunReason.JOB_INVALID) if known is None else admit(known, offered, view)


def person(name: str, /, **changes: Any) -> Callable[[Directory], Directory]:
    """Return what changes one person of the directory."""

    def change(directory: Directory) -> Directory:
        people = tuple(one.model_copy(update=changes) if one.name == name else one for one in directory.people)
        return directory.model_copy(update={"people": people})

    return change


def project(**changes: Any) -> Callable[[Directory], Directory]:
    """Return what changes the one project of the directory."""
    return lambda directory: directory.model_copy(
        update={"projects": tuple(one.model_copy(update=changes) for one in directory.projects)}
    )


def votes(**changes: Any) -> Mapping[str, Any]:
    """Return the analyses with another outcome of the votes."""
    return {
        key: replace(analysis, count=replace(analysis.count, **changes))
        for key, analysis in base_trust().analyses.items()
    }


def _other_type(case: Case) -> None:
    case.envelope = lambda spec: replace(signed_as(spec), payload_type="application/vnd.hansa.job.v2+json")


def _forged(case: Case) -> None:
    inner = case.envelope
    case.envelope = lambda spec: replace(inner(spec), signature=bytes(64))


def _set(part: str, **changes: Any) -> Callable[[Case], None]:
    return lambda case: getattr(case, part).update(changes)


def _policy(section: str, **changes: Any) -> Callable[[Case], None]:
    return lambda case: case.policy.setdefault(section, {}).update(changes)


def _directory(change: Callable[[Directory], Directory]) -> Callable[[Case], None]:
    return lambda case: case.directory.append(change)


def _blind(case: Case) -> None:
    case.blind = True


_ELSEWHERE = (DatasetRef(node="ES", dataset="ES-lct", snapshot=SNAPSHOT),)
_OTHER_KEY = "B" * 42 + "A="

# Name, what it changes, and what the node says; in the order in which a node asks.
GROUNDS: Final[tuple[tuple[str, Callable[[Case], None], RunReason], ...]] = (
    ("not a job", _other_type, RunReason.JOB_INVALID),
    ("another federation", _set("job", federation="other.example"), RunReason.JOB_INVALID),
    ("not for this node", _set("job", datasets=_ELSEWHERE, quorum=1), RunReason.JOB_INVALID),
    ("another round", _set("offered", round=2), RunReason.JOB_INVALID),
    ("clock wrong", _set("view", clock_wrong=True), RunReason.CLOCK_WRONG),
    ("too late", _set("job", not_after=START), RunReason.DEADLINE_PASSED),
    ("too early", _set("job", not_before=START + timedelta(hours=1)), RunReason.JOB_INVALID),
    ("replayed", _set("view", seen=Seen.OTHER), RunReason.JOB_REPLAYED),
    ("log forked", _set("view", alarmed=True), RunReason.LOG_FORKED),
    ("no trust yet", _blind, RunReason.DIRECTORY_BEHIND),
    ("older directory", _directory(lambda one: one.model_copy(update={"version": 7})), RunReason.DIRECTORY_ROLLBACK),
    ("newer directory", _set("job", directory_version=9), RunReason.DIRECTORY_BEHIND),
    ("expired metadata", _set("trust", expires=START), RunReason.TRUST_EXPIRED),
    ("other node keys", _set("view", keys=NodeKeys(_OTHER_KEY, _OTHER_KEY)), RunReason.NODE_NOT_IN_DIRECTORY),
    ("no researcher", _directory(person("ada", roles=(Role.REVIEWER,))), RunReason.SUBMITTER_NOT_ADMITTED),
    ("forged", _forged, RunReason.SIGNATURE_INVALID),
    ("project over", _directory(project(valid_until=START)), RunReason.PROJECT_NOT_ADMITTED),
    ("not sealed", _directory(project(sealed=True)), RunReason.SEALING_REQUIRED),
    ("other recipient", _set("job", recipient_key=_OTHER_KEY), RunReason.RECIPIENT_MISMATCH),
    ("voted down", _set("trust", analyses=votes(rejected_by=("rev3",))), RunReason.ANALYSIS_NOT_ADMITTED),
    ("not installed", _set("view", manifest=None), RunReason.ANALYSIS_NOT_ADMITTED),
    ("submitter unwanted", _policy("admission", submitters=[]), RunReason.SUBMITTER_NOT_ADMITTED),
    ("analysis unwanted", _policy("admission", analyses=[]), RunReason.ANALYSIS_NOT_ADMITTED),
    ("no such dataset", _set("view", dataset=None), RunReason.DATASET_NOT_OFFERED),
    ("no parameters", _set("job", parameters={}), RunReason.PARAMETER_INVALID),
    ("too many variants", _set("job", parameters={"variants": "rs1,rs2"}), RunReason.TOO_MANY_VARIANTS),
    ("draining", _set("view", draining=True), RunReason.NODE_DRAINING),
    ("busy", _set("view", queued=1000), RunReason.NODE_BUSY),
    ("busy with its project", _set("view", queued=500, queued_of_project=500), RunReason.NODE_BUSY),
    ("no passport", _policy("admission", require_passport=True), RunReason.PASSPORT_MISSING),
)
# A job has one version, one recipient, one question.
EXCLUSIVE: Final = (
    {"older directory", "newer directory"},
    {"not sealed", "other recipient"},
    {"no parameters", "too many variants"},
)
