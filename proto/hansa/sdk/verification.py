"""What a job's evidence proves, without trusting anybody between the nodes and the verifier.

Offline: everything comes from files and from the verifier's own root of the
trust repository. Each step stands alone in the report, with the file at fault
where it fails; steps that need one that failed are not taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError

from hansa.contract import envelope
from hansa.contract.digests import digest
from hansa.contract.directory import Role
from hansa.contract.envelope import Signed
from hansa.contract.errors import HansaError, Reason, RunReason
from hansa.contract.job import JobSpec, parse_job
from hansa.contract.log_evidence import (
    CHECKPOINT_FILE,
    ENTRIES_FILE,
    LoggedJob,
    LoggedRelease,
    node_checkpoint_file,
    node_proof_file,
    verify_log_evidence,
)
from hansa.contract.manifest import parse_manifest
from hansa.contract.raw_keys import key_text, signing_key
from hansa.contract.receipt import Expected, subject_digest, verified_statement
from hansa.contract.sealing import SealContext, open_sealed
from hansa.contract.statement import Statement
from hansa.contract.states import JobState, RunState
from hansa.contract.strict import Strict, strict_json
from hansa.contract.summary import Summary, parse_summary
from hansa.sdk.evidence import JOB_FILE, RESULT_FILE, is_evidence_name, statement_file, summary_file
from hansa.sdk.trust_evidence import trust_of
from hansa.statistics.result import CombinationError, JobEnd, RunEnd, result_bytes
from hansa.trust.view import TrustedAnalysis, TrustView

T = TypeVar("T")

_TIMESTAMP: Final = "trust/metadata/timestamp.json"
_RESULT_DEPTH: Final = 12


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was looked at, whether it holds, the file at fault, and in words what was found.

    ``pending``: nothing is wrong, but the audit logs do not show everything yet.
    """

    name: str
    ok: bool
    where: str = ""
    words: str = ""
    pending: bool = False


@dataclass(slots=True)
class Verification:
    """The report.

    ``result`` is the result as recomputed, for a sealed job with what the
    recipient's key opened; None where it could not be made. ``silent`` are the
    nodes of the job that gave nothing, with the state that the coordinator
    reports and nobody proves.
    """

    steps: list[Step] = field(default_factory=list)
    answered: tuple[str, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)
    result: bytes | None = None

    @property
    def ok(self) -> bool:
        """Whether every step was taken and holds."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    @property
    def failed(self) -> tuple[Step, ...]:
        """The steps that do not hold."""
        return tuple(step for step in self.steps if not step.ok)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """What the verifier brings along.

    Attributes:
        root: the pinned root metadata of the federation's trust repository.
        recipient_key: opens the summaries of a sealed job.
        witnesses: how many cosignatures the coordinator's log needs; two, or
            as many as there are witnesses, where None.
        with_summaries: False for an auditor, whose evidence has none.
    """

    root: bytes
    recipient_key: X25519PrivateKey | None = None
    witnesses: int | None = None
    with_summaries: bool = True


class _ClaimedRun(Strict):
    node: str
    state: RunState
    reason: RunReason | Literal[""]
    dataset: str
    statement: str | None


def verify_evidence(files: Mapping[str, bytes], verifier: Verifier, job_id: str = "") -> Verification:
    """Return what ``files`` (by name) prove.

    Args:
        files: the evidence of one job.
        verifier: the verifier's root, and keys.
        job_id: of which job it must be; of any if empty.
    """
    inquiry = _Inquiry(files, verifier)
    inquiry.run(job_id)
    return inquiry.report


@dataclass(slots=True)
class _Job:
    signed: Signed
    spec: JobSpec
    end: JobEnd


class _Stop(Exception):
    pass


class _Inquiry:
    """One verification, step after step."""

    def __init__(self, files: Mapping[str, bytes], verifier: Verifier) -> None:
        self.files, self.verifier, self.report = files, verifier, Verification()

    def run(self, job_id: str) -> None:
        """Take the steps; the report has what came of them."""
        try:
            self._step("files", self._names)
            view = self._step("trust repository", self._trust)
            signed, spec = self._step("signed job", lambda: self._job(view, job_id))
            analysis = self._step("approved analysis", lambda: self._analysis(view, spec))
            end = self._step("account of the nodes", lambda: self._claims(spec))
        except _Stop:
            return
        job = _Job(signed, spec, end)
        answering = [run.node for run in end.runs if run.statement]
        self.report.answered = tuple(answering)
        self.report.silent = {run.node: run.state.value for run in end.runs if not run.statement}
        statements = {
            node: found for node in answering if (found := self._node_step(node, "statement", view, job)) is not None
        }
        self._conclude(view, job, analysis, statements)

    def _conclude(
        self, view: TrustView, job: _Job, analysis: TrustedAnalysis, statements: Mapping[str, Statement]
    ) -> None:
        parts: dict[str, Summary] | None = {}
        for node, statement in statements.items():
            try:
                part = self._step(f"summary of {node}", lambda: self._summary(job, analysis, node, statement))  # noqa: B023
                if part is not None and parts is not None:
                    parts[node] = part
            except _Stop:
                parts = None
        try:
            if parts is not None and len(statements) == len(self.report.answered):
                found = parts
                self._step("result", lambda: self._result(job, found))
            self._step("audit logs", lambda: self._logs(view, job, statements))
        except _Stop:
            return

    def _node_step(self, node: str, what: str, view: TrustView, job: _Job) -> Statement | None:
        try:
            return self._step(f"{what} of {node}", lambda: self._statement(view, job, node))
        except _Stop:
            return None

    def _step(self, name: str, work: Callable[[], tuple[T, str]]) -> T:
        try:
            value, words = work()
        except HansaError as error:
            pending = error.reason is Reason.LOG_ENTRY_UNKNOWN
            self.report.steps.append(Step(name, ok=False, where=error.field, words=error.public, pending=pending))
            raise _Stop from None
        self.report.steps.append(Step(name, ok=True, words=words))
        return value

    def _file(self, name: str) -> bytes:
        if name not in self.files:
            raise _wrong(name, "The file is missing.")
        return self.files[name]

    def _names(self) -> tuple[None, str]:
        for name in self.files:
            if not is_evidence_name(name):
                raise _wrong(ascii(name[:100])[1:-1], "This is not the name of a file of the evidence.")
        return None, f"{len(self.files)} files"

    def _trust(self) -> tuple[TrustView, str]:
        view = trust_of(self.files, self.verifier.root)
        return view, f"root {view.root_version}, directory {view.directory.version} of {view.directory.federation}"

    def _job(self, view: TrustView, job_id: str) -> tuple[tuple[Signed, JobSpec], str]:
        with _Within(JOB_FILE):
            signed = envelope.from_json(self._file(JOB_FILE))
            spec = parse_job(signed.payload)
            person = view.directory.person(signed.key_id)
            if person is None or not person.has(Role.RESEARCHER) or spec.submitter != person.name:
                raise _wrong(JOB_FILE, "It is not signed by a researcher of the directory in their own name.")
            envelope.verify(signed, payload_type=envelope.JOB_TYPE, key=signing_key(person.signing_key))
            if job_id and spec.job_id != job_id:
                raise _wrong(JOB_FILE, f"It is of another job than {job_id}.")
            if spec.federation != view.directory.federation or spec.directory_version > view.directory.version:
                raise _wrong(JOB_FILE, "It is of another federation, or of a newer directory than there is.")
        return (signed, spec), f"{spec.job_id} by {spec.submitter}"

    def _analysis(self, view: TrustView, spec: JobSpec) -> tuple[TrustedAnalysis, str]:
        found = view.analyses.get(f"{spec.analysis.name}@{spec.analysis.version}")
        if found is None or found.ref != spec.analysis:
            raise _wrong(JOB_FILE, "The trust repository has no analysis of this name, version and digest.")
        if not found.count.approved:
            raise _wrong("trust", "The votes do not approve the analysis: two reviewers of two organisations must.")
        return found, f"{found.key}, approved by {', '.join(found.count.approved_by)}"

    def _claims(self, spec: JobSpec) -> tuple[JobEnd, str]:
        """Read how the coordinator says that the runs ended; what it says of a release is proven later."""
        with _Within(RESULT_FILE):
            try:
                value = strict_json(self._file(RESULT_FILE), _RESULT_DEPTH)
                state = JobState(value["state"])
                claimed = tuple(_ClaimedRun.model_validate(one) for one in value["nodes"])
            except (ValidationError, ValueError, LookupError, TypeError, RecursionError) as error:
                raise _wrong(RESULT_FILE, "It is not a result.") from error
            if [(run.node, run.dataset) for run in claimed] != [(ref.node, ref.dataset) for ref in spec.datasets]:
                raise _wrong(RESULT_FILE, "Its nodes are not those of the job.")
            if any(run.statement is not None and run.state is not RunState.RELEASED for run in claimed):
                raise _wrong(RESULT_FILE, "A node has a statement and has not released.")
        runs = tuple(
            RunEnd(
                node=run.node,
                dataset=run.dataset,
                state=run.state,
                reason=str(run.reason),
                statement=run.statement or "",
            )
            for run in claimed
        )
        answering = [run.node for run in runs if run.statement]
        self._check_complete(answering)
        return JobEnd(state=state, runs=runs), f"{state.value}, {len(answering)} of {len(runs)} nodes answered"

    def _check_complete(self, answering: list[str]) -> None:
        """Check that there is no statement or summary but of the nodes that answered."""
        wanted = {statement_file(node) for node in answering}
        if self.verifier.with_summaries:
            wanted |= {summary_file(node) for node in answering}
        for name in sorted(self.files):
            if name.startswith(("statements/", "summaries/")) and name not in wanted:
                raise _wrong(name, "The result knows nothing of it.")

    def _statement(self, view: TrustView, job: _Job, node: str) -> tuple[Statement, str]:
        name = statement_file(node)
        with _Within(name):
            signed = envelope.from_json(self._file(name))
            known = view.directory.node(node)
            if known is None:
                raise _wrong(name, "The node is not in the directory.")
            expected = Expected(payload=job.signed.payload, spec=job.spec, node=node)
            statement = verified_statement(signed, key=known.signing_key, expected=expected)
        claimed = next(run.statement for run in job.end.runs if run.node == node)
        if claimed != digest(signed.payload):
            raise _wrong(RESULT_FILE, f"It names another statement of {node}.")
        release = statement.predicate
        if release.directory_version > view.directory.version:
            raise _wrong(_TIMESTAMP, "The trust repository is older than the one that the node released under.")
        if release.released_at >= view.expires:
            raise _wrong(_TIMESTAMP, "The trust repository had expired when the summary was released.")
        deciders = ", ".join(decider.by for decider in release.deciders)
        return statement, f"released {release.released_at:%Y-%m-%d %H:%M:%S}Z by {deciders}"

    def _summary(
        self, job: _Job, analysis: TrustedAnalysis, node: str, statement: Statement
    ) -> tuple[Summary | None, str]:
        name = summary_file(node)
        if not self.verifier.with_summaries:
            return None, "not part of this evidence"
        with _Within(name):
            content = self._file(name)
            if hashlib.sha256(content).hexdigest() != subject_digest(statement):
                raise _wrong(name, "It is not what the node's statement speaks of.")
            if job.spec.recipient_key is not None:
                key = self.verifier.recipient_key
                if key is None:
                    return None, "sealed; not opened without the recipient's key"
                content = self._opened(job, statement, content, key)
            schema = parse_manifest(analysis.manifest).summary
            return parse_summary(content, schema, released_only=True), f"{len(content)} bytes"

    def _opened(self, job: _Job, statement: Statement, content: bytes, key: X25519PrivateKey) -> bytes:
        if key_text(key.public_key()) != job.spec.recipient_key:
            raise HansaError(Reason.SEALED_INVALID, "The summaries are sealed to another key than this.")
        release = statement.predicate
        return open_sealed(content, key, SealContext(release.run_id, release.attempt, release.job_digest))

    def _result(self, job: _Job, parts: Mapping[str, Summary]) -> tuple[bytes | None, str]:
        spec, end = job.spec, job.end
        answered = len(self.report.answered)
        if end.state is JobState.COMPLETED and answered < spec.quorum:
            raise _wrong(RESULT_FILE, f"{answered} nodes answered, the quorum is {spec.quorum}.")
        if not self.verifier.with_summaries:
            return None, "not recomputed: there are no summaries in this evidence"
        is_sealed = spec.recipient_key is not None
        with _Within(RESULT_FILE):
            try:
                self.report.result = result_bytes(spec, end, parts)
                received = result_bytes(spec, end, {}) if is_sealed else self.report.result
            except CombinationError as error:
                raise _wrong(RESULT_FILE, "The summaries cannot be combined.") from error
            if received != self._file(RESULT_FILE):
                raise _wrong(RESULT_FILE, "It is not what the summaries come to.")
        has_figures = any(array.cells for part in parts.values() for array in part.arrays.values())
        if end.state is JobState.WITHHELD and answered >= spec.quorum and has_figures:
            raise _wrong(RESULT_FILE, "It says that nothing may be said, and the summaries have figures.")
        return self.report.result, "recomputed, byte for byte" if parts or not is_sealed else "sealed"

    def _logs(self, view: TrustView, job: _Job, statements: Mapping[str, Statement]) -> tuple[None, str]:
        releases = {}
        for node, statement in statements.items():
            release = statement.predicate
            releases[node] = LoggedRelease(
                run_id=release.run_id,
                digest=f"sha256:{subject_digest(statement)}",
                statement=next(run.statement for run in job.end.runs if run.node == node),
                index=release.log.index,
                leaf_hash=release.log.leaf_hash,
            )
        logged = LoggedJob(job_id=job.spec.job_id, job_digest=digest(job.signed.payload), releases=releases)
        found = verify_log_evidence(self.files, view.directory, logged, needed=self.verifier.witnesses)
        known = {file for node in self.report.answered for file in (node_proof_file(node), node_checkpoint_file(node))}
        for name in sorted(self.files):
            if name.endswith((".proof.json", ".checkpoint")) and name not in known:
                raise _wrong(name, "The node did not answer.")
        if found.missing:
            where = CHECKPOINT_FILE if CHECKPOINT_FILE not in self.files else ENTRIES_FILE
            words = f"{where}: The logs do not show everything (yet): {'; '.join(found.missing)}."
            raise HansaError(Reason.LOG_ENTRY_UNKNOWN, words, field=where)
        return None, f"{found.entries} entries, size {found.size}, cosigned by {', '.join(found.witnesses)}"


class _Within:
    """Says of every refusal inside that it is about one file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, HansaError) and error.reason is not Reason.EVIDENCE_INVALID:
            raise _wrong(self._name, error.public) from error


def _wrong(name: str, words: str) -> HansaError:
    return HansaError(Reason.EVIDENCE_INVALID, f"{name}: {words}", field=name)
