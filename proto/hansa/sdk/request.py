"""Builds the job that a researcher signs, from what their own trust repository says and which datasets there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import ValidationError

from hansa.contract.directory import Directory, DirectoryProject
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import DatasetRef, JobSpec
from hansa.contract.limits import JOB_BYTES, MAX_DEADLINE
from hansa.contract.manifest import check_parameters, parse_manifest
from hansa.contract.release import ReleaseClass
from hansa.trust.view import TrustedAnalysis, TrustView
from hansa.v1 import types_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a researcher asks, in their own words.

    Attributes:
        analysis: a name of the trust repository.
        version: the newest that may run when empty.
        project: whose permission the job uses; when empty, that of the one project that the researcher is in.
        purpose: for the people who approve it.
        release_class: how many people look at each summary, at least.
        seal: whether the summaries are for the researcher alone; a project
            can demand it.
        datasets: ids as in the catalogue, or ``NODE/ID`` where two nodes
            offer datasets of one id.
        parameters: as typed; brought into normal form later.
        quorum: how many nodes must release; all of them when None.
        lifetime: from now to the deadline.
    """

    analysis: str
    version: str = ""
    project: str = ""
    purpose: str = ""
    release_class: ReleaseClass = ReleaseClass.AUTO
    seal: bool = False
    datasets: Sequence[str]
    parameters: Mapping[str, str] = field(default_factory=dict)
    quorum: int | None = None
    lifetime: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What makes a job this one and no other: who, when, and two random ids."""

    submitter: str
    now: datetime
    job_id: str
    nonce: str


def check_request(request: JobRequest) -> None:
    """Return if nothing is wrong that can be known before any contact.

    Raises:
        HansaError: ``QUORUM_INVALID``, ``DEADLINE_INVALID``, ``MALFORMED``
            (no dataset, or one named twice).
    """
    if not request.datasets:
        raise HansaError(Reason.MALFORMED, "Name at least one dataset.", field="dataset")
    for name in request.datasets:
        if request.datasets.count(name) > 1:
            raise HansaError(Reason.MALFORMED, f"The dataset {name[:80]!a} is named twice.", field="dataset")
    if request.quorum is not None and not 1 <= request.quorum <= len(request.datasets):
        raise HansaError(
            Reason.QUORUM_INVALID,
            f"The quorum is {request.quorum}, but the job names {len(request.datasets)} datasets, one per node.",
            field="quorum",
        )
    if not timedelta() < request.lifetime <= MAX_DEADLINE:
        raise HansaError(Reason.DEADLINE_INVALID, field="deadline")


def build_job(request: JobRequest, view: TrustView, datasets: Iterable[types_pb2.Dataset], *, fresh: Fresh) -> JobSpec:
    """Return the job that asks an analysis of ``datasets``, ready to be signed.

    Raises:
        HansaError: whatever ``check_request`` refuses; ``ANALYSIS_UNKNOWN``
            (not there, or not approved); ``PERMISSION_DENIED`` by the project;
            ``KEY_INVALID`` (nothing to seal to); ``DATASET_UNKNOWN``,
            ``DATASETS_OVERLAP``, ``BUILD_MISMATCH``; ``PARAMETER_…`` by the
            manifest; ``MALFORMED`` where the catalogue's answer does not fit.
    """
    check_request(request)
    analysis = choose_analysis(view, request.analysis, request.version)
    chosen = resolve_datasets(request.datasets, datasets)
    project = _project(view.directory, request.project, fresh)
    _check_allowed(project, analysis, chosen)
    parameters = check_parameters(parse_manifest(analysis.manifest), request.parameters)
    sealed = request.seal or project.sealed
    try:
        spec = JobSpec(
            federation=view.directory.federation,
            directory_version=view.directory.version,
            job_id=fresh.job_id,
            nonce=fresh.nonce,
            submitter=fresh.submitter,
            project=project.project,
            purpose=request.purpose,
            analysis=analysis.ref,
            parameters=parameters,
            datasets=tuple(DatasetRef(node=one.node, dataset=one.dataset_id, snapshot=one.snapshot) for one in chosen),
            quorum=request.quorum or len(chosen),
            release_class=request.release_class,
            recipient_key=_recipient_key(view.directory, fresh.submitter) if sealed else None,
            not_before=fresh.now,
            not_after=fresh.now + request.lifetime,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "job"
        raise HansaError(Reason.MALFORMED, f"The job cannot be built: {first['msg']}.", field=where) from error
    _check_size(spec)
    return spec


def choose_analysis(view: TrustView, name: str, version: str = "") -> TrustedAnalysis:
    """Return the analysis ``name``: that version, or the newest that may run.

    Raises:
        HansaError: ``ANALYSIS_UNKNOWN``; there is none, or it lacks votes.
    """
    found = [one for one in view.analyses.values() if one.name == name and version in {"", one.version}]
    if not found:
        raise HansaError(
            Reason.ANALYSIS_UNKNOWN,
            f"The trust repository has no analysis {_at(name, version)}; see `hansa analysis list`.",
            field="analysis",
        )
    approved = [one for one in found if one.count.approved]
    if not approved:
        raise HansaError(
            Reason.ANALYSIS_UNKNOWN,
            f"The analysis {_at(name, version)} is not approved; `hansa analysis list` says what it lacks.",
            field="analysis",
        )
    return max(approved, key=lambda one: version_rank(one.version))


def version_rank(version: str) -> tuple[int, ...]:
    """Return what versions are compared by: their numbers."""
    return tuple(int(part) for part in version.split("."))


def _at(name: str, version: str) -> str:
    return ascii(f"{name}@{version}" if version else name)[:80]


def _project(directory: Directory, name: str, fresh: Fresh) -> DirectoryProject:
    own = [project.project for project in directory.projects if fresh.submitter in project.researchers]
    if not name and len(own) != 1:
        words = f"You are in {len(own)} projects; pass --project." if own else "You are in no project."
        raise HansaError(Reason.PERMISSION_DENIED, words, field="project")
    name = name or own[0]
    project = directory.project(name)
    if project is None or fresh.submitter not in project.researchers:
        # A project of others looks like one that is not there, as at a node.
        raise HansaError(Reason.PERMISSION_DENIED, f"You are in no project {name[:64]!a}.", field="project")
    if project.valid_until <= fresh.now:
        raise HansaError(
            Reason.PERMISSION_DENIED, f"The project {name} ended on {project.valid_until:%Y-%m-%d}.", field="project"
        )
    return project


def _check_allowed(project: DirectoryProject, analysis: TrustedAnalysis, chosen: Sequence[types_pb2.Dataset]) -> None:
    if analysis.key not in project.analyses:
        raise HansaError(
            Reason.PERMISSION_DENIED, f"The project {project.project} does not use {analysis.key}.", field="analysis"
        )
    for one in chosen:
        if f"{one.node}/{one.dataset_id}" not in project.datasets:
            raise HansaError(
                Reason.PERMISSION_DENIED,
                f"The project {project.project} does not use the dataset {one.node}/{one.dataset_id}.",
                field="dataset",
            )


def _recipient_key(directory: Directory, submitter: str) -> str:
    person = directory.person(submitter)
    if person is None or person.recipient_key is None:
        raise HansaError(
            Reason.KEY_INVALID,
            "The directory has no key of yours to seal to; see `hansa key create --recipient`.",
            field="recipient_key",
        )
    return person.recipient_key


def resolve_datasets(names: Sequence[str], datasets: Iterable[types_pb2.Dataset]) -> list[types_pb2.Dataset]:
    """Return the datasets that ``names`` mean, in the order of the names.

    Raises:
        HansaError: ``DATASET_UNKNOWN``, ``DATASETS_OVERLAP`` (two of one node,
            or one name for two), ``BUILD_MISMATCH``.
    """
    offered = list(datasets)
    chosen = [_resolve(name, offered) for name in names]
    _check_nodes(chosen)
    builds = {one.build for one in chosen}
    if len(builds) > 1:
        told = ", ".join(f"{one.dataset_id} is {one.build}" for one in chosen)
        raise HansaError(
            Reason.BUILD_MISMATCH, f"All datasets of a job must be of one genome build; {told}.", field="dataset"
        )
    return chosen


def _resolve(name: str, offered: Sequence[types_pb2.Dataset]) -> types_pb2.Dataset:
    found = [one for one in offered if name in {one.dataset_id, f"{one.node}/{one.dataset_id}"}]
    if not found:
        raise HansaError(
            Reason.DATASET_UNKNOWN, f"No node holds {name[:80]!a}; see `hansa datasets list`.", field="dataset"
        )
    if len(found) > 1:
        choices = " or ".join(f"{one.node}/{one.dataset_id}" for one in found)
        raise HansaError(
            Reason.DATASETS_OVERLAP, f"Several nodes hold {name[:80]!a}; write {choices}.", field="dataset"
        )
    return found[0]


def _check_nodes(chosen: Sequence[types_pb2.Dataset]) -> None:
    first: dict[str, str] = {}
    for one in chosen:
        if one.node in first:
            raise HansaError(
                Reason.DATASETS_OVERLAP,
                f"{first[one.node]} and {one.dataset_id} are both of {one.node}; a job may name one dataset per node.",
                field="dataset",
            )
        first[one.node] = one.dataset_id


def _check_size(spec: JobSpec) -> None:
    size = len(spec.to_bytes())
    if size > JOB_BYTES:
        raise HansaError(
            Reason.PARAMETER_INVALID,
            f"The job is {size} bytes, over the {JOB_BYTES} that one may have; ask for fewer variants or a region.",
            field="parameters",
        )
