"""The part of a job's evidence that comes from the audit logs, and its verification.

Pure: everything is checked from files and the verifier's own directory. Each
file has one form; a byte that changes nothing would be a byte that nobody
vouches for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field

from hansa.contract.digests import canonical
from hansa.contract.directory import Directory
from hansa.contract.errors import HansaError, Reason
from hansa.contract.merkle import leaf_hash, verify_inclusion
from hansa.contract.notes import MOST_HASHES, Note, coordinator_origin, cosigned_at, node_origin, open_checkpoint
from hansa.contract.raw_keys import signing_key
from hansa.contract.strict import Strict, parse_strict, pattern, strict_json
from hansa.contract.witnessing import needed_of

CHECKPOINT_FILE: Final = "log/checkpoint"
ENTRIES_FILE: Final = "log/entry.json"
PROOFS_FILE: Final = "log/proof.json"
SUBMITTED: Final = "job_submitted"
RELEASED: Final = "summary_released"

M = TypeVar("M", bound=Strict)

_FILE_BYTES: Final = 4 << 20
_MOST_ENTRIES: Final = 1000
# Entries are JSON in ASCII.
MOST_ENTRY_BYTES: Final = 16 << 10
_DEPTH: Final = 4
_Hash = Annotated[str, pattern("[0-9a-f]{64}")]
# What canonical JSON can write exactly.
_Index = Annotated[int, Field(ge=0, le=(1 << 53) - 1, strict=True)]
_Hashes = Annotated[tuple[_Hash, ...], Field(max_length=MOST_HASHES)]


def node_checkpoint_file(node: str) -> str:
    """Return the file with the checkpoint of a node's log."""
    return f"log/{node}.checkpoint"


def node_proof_file(node: str) -> str:
    """Return the file with the proof that a node's release is in its log."""
    return f"log/{node}.proof.json"


class LoggedEntry(Strict):
    """An entry as it is hashed; ``body`` is its text."""

    index: _Index
    body: Annotated[str, Field(max_length=MOST_ENTRY_BYTES)]


class LoggedEntries(Strict):
    """``log/entry.json``: the coordinator's entries on the job."""

    v: Literal[1] = 1
    entries: Annotated[tuple[LoggedEntry, ...], Field(min_length=1, max_length=_MOST_ENTRIES)]


class LoggedProof(Strict):
    """That one entry is among the first ``size`` of the file's checkpoint."""

    index: _Index
    hashes: _Hashes


class LoggedProofs(Strict):
    """``log/proof.json``: one proof for each of the entries, in their order."""

    v: Literal[1] = 1
    size: _Index
    proofs: Annotated[tuple[LoggedProof, ...], Field(min_length=1, max_length=_MOST_ENTRIES)]


class NodeProof(Strict):
    """``log/<NODE>.proof.json``: a node's entry of its release, and its proof."""

    v: Literal[1] = 1
    size: _Index
    index: _Index
    body: Annotated[str, Field(max_length=MOST_ENTRY_BYTES)]
    hashes: _Hashes


def file_bytes(value: Strict) -> bytes:
    """Return ``value`` as the one form of its file."""
    return canonical(value.model_dump(mode="json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRelease:
    """What a node's release statement says of its own log, and of what left.

    ``digest`` is of the bytes that left (``sha256:…``); ``statement`` of the
    statement's payload.
    """

    run_id: str
    digest: str
    statement: str
    index: int
    leaf_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedJob:
    """What must be in the logs, from parts of the evidence that were verified before."""

    job_id: str
    # Of the job's signed payload.
    job_digest: str
    releases: Mapping[str, LoggedRelease] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFindings:
    """What the logs show.

    Attributes:
        size: of the coordinator's checkpoint.
        witnesses: nodes of the directory that cosigned it, each verified.
        needed: how many of them make it good.
        entries: how many of the coordinator's entries were proven to be in it.
        nodes: whose release is proven by a checkpoint that the coordinator cosigned.
        missing: in words, what is not there (yet); empty if all is.
    """

    size: int
    witnesses: tuple[str, ...]
    needed: int
    entries: int
    nodes: tuple[str, ...]
    missing: tuple[str, ...]


def verify_log_evidence(
    files: Mapping[str, bytes], directory: Directory, job: LoggedJob, *, needed: int | None = None
) -> LogFindings:
    """Return what the logs' files prove of ``job``.

    Args:
        files: the evidence by path; what is not of the logs is not looked at.
        directory: the verifier's own.
        job: what must be in the logs.
        needed: how many witnesses must have cosigned; two, or as many as
            there are, where None.

    Raises:
        HansaError: ``EVIDENCE_INVALID`` with the file as ``field``; what is
            there is wrong. What is not there is said in the findings.
    """
    wanted = needed_of(len(directory.witnesses)) if needed is None else needed
    missing: list[str] = []
    size = 0
    witnesses: tuple[str, ...] = ()
    entries: tuple[Mapping[str, Any], ...] = ()
    if CHECKPOINT_FILE in files:
        note = _opened(files, directory)
        size, witnesses = note.checkpoint.size, _witnesses(note, directory)
        entries = _entries(files, note)
        missing += _lacking(job, entries)
        if len(witnesses) < wanted:
            missing.append(f"{wanted - len(witnesses)} more witnesses of the coordinator's log")
    else:
        missing.append("a checkpoint of the coordinator's log")
    proven = tuple(
        node for node, release in sorted(job.releases.items()) if _is_node_proven(files, directory, node, release)
    )
    missing += [f"the proof from the log of {node}" for node in sorted(set(job.releases) - set(proven))]
    return LogFindings(
        size=size,
        witnesses=witnesses,
        needed=wanted,
        entries=len(entries),
        nodes=proven,
        missing=tuple(missing),
    )


def _opened(files: Mapping[str, bytes], directory: Directory) -> Note:
    origin = coordinator_origin(directory.federation)
    return _note(files, CHECKPOINT_FILE, origin, directory.coordinator_log_key)


def _note(files: Mapping[str, bytes], path: str, origin: str, key: str) -> Note:
    try:
        note = open_checkpoint(files[path], origin=origin, key=signing_key(key))
    except HansaError as error:
        raise _wrong(path, error.public) from error
    if note.to_bytes() != files[path]:
        raise _wrong(path, "It is not written as notes are.")
    return note


def _witnesses(note: Note, directory: Directory) -> tuple[str, ...]:
    """Return the witnesses that cosigned; a line that is no good signature of anybody is a fault."""
    found = []
    nodes = {node_origin(directory.federation, node.node): node for node in directory.nodes}
    for line in note.lines:
        if line.name == note.checkpoint.origin:
            continue
        node = nodes.get(line.name)
        if (
            node is None
            or cosigned_at(note.checkpoint, line, name=line.name, key=signing_key(node.signing_key)) is None
        ):
            raise _wrong(CHECKPOINT_FILE, f"The cosignature of {line.name} is not good.")
        if node.node in directory.witnesses:
            found.append(node.node)
    return tuple(sorted(found))


def _entries(files: Mapping[str, bytes], note: Note) -> tuple[Mapping[str, Any], ...]:
    entries = _parsed(LoggedEntries, files, ENTRIES_FILE).entries
    proofs = _parsed(LoggedProofs, files, PROOFS_FILE)
    if proofs.size != note.checkpoint.size or [p.index for p in proofs.proofs] != [e.index for e in entries]:
        raise _wrong(PROOFS_FILE, "The proofs are not of these entries and this checkpoint.")
    for entry, proof in zip(entries, proofs.proofs, strict=True):
        if not _included(entry.body, entry.index, proof.hashes, note):
            raise _wrong(ENTRIES_FILE, f"Entry {entry.index} is not in the coordinator's log.")
    return tuple(_facts(entry.body, ENTRIES_FILE) for entry in entries)


def _lacking(job: LoggedJob, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    told = {tuple(sorted(facts.items())) for facts in entries}
    submission = logged_submission(job.job_id, job.job_digest)
    wanted = {"the entry of the job's submission": {**submission, "action": SUBMITTED}}
    for node, release in sorted(job.releases.items()):
        facts = logged_release(job.job_id, node, release.run_id, release.statement)
        wanted[f"the coordinator's entry of {node}'s release"] = {**facts, "action": RELEASED}
    return [words for words, facts in wanted.items() if tuple(sorted(facts.items())) not in told]


def logged_submission(job_id: str, job_digest: str) -> dict[str, str]:
    """Return the facts of the coordinator's entry ``SUBMITTED``.

    Args:
        job_id: the job.
        job_digest: of its signed payload.
    """
    return {"job": job_id, "job_digest": job_digest}


def logged_release(job_id: str, node: str, run_id: str, statement: str) -> dict[str, str]:
    """Return the facts of the coordinator's entry ``RELEASED``, of a statement that it accepted.

    Args:
        job_id: the job.
        node: who released.
        run_id: the node's run.
        statement: digest of the statement's payload.
    """
    return {"job": job_id, "node": node, "run": run_id, "statement": statement}


def _is_node_proven(files: Mapping[str, bytes], directory: Directory, node: str, release: LoggedRelease) -> bool:
    checkpoint, path = node_checkpoint_file(node), node_proof_file(node)
    if checkpoint not in files and path not in files:
        return False
    known = directory.node(node)
    if known is None or checkpoint not in files or path not in files:
        raise _wrong(path, "There is half of a proof, or the node is not in the directory.")
    note = _note(files, checkpoint, node_origin(directory.federation, node), known.signing_key)
    _check_coordinator_cosigned(note, directory, checkpoint)
    proof = _parsed(NodeProof, files, path)
    same = (proof.index, leaf_hash(proof.body.encode()).hex()) == (release.index, release.leaf_hash)
    if not same or proof.size != note.checkpoint.size:
        raise _wrong(path, "The proof is not of the entry that the release statement names.")
    if not _included(proof.body, proof.index, proof.hashes, note):
        raise _wrong(path, "The entry is not in the node's log.")
    facts = _facts(proof.body, path)
    named = (facts.get("action"), facts.get("run"), facts.get("digest"))
    if named != (RELEASED, release.run_id, release.digest):
        raise _wrong(path, "The entry is of another release.")
    return True


def _check_coordinator_cosigned(note: Note, directory: Directory, path: str) -> None:
    name, key = coordinator_origin(directory.federation), signing_key(directory.coordinator_log_key)
    others = [line for line in note.lines if line.name != note.checkpoint.origin]
    if len(others) != 1 or cosigned_at(note.checkpoint, others[0], name=name, key=key) is None:
        raise _wrong(path, "The coordinator has not cosigned the node's checkpoint.")


def _included(body: str, index: int, hashes: Sequence[str], note: Note) -> bool:
    proof = [bytes.fromhex(one) for one in hashes]
    return verify_inclusion(leaf_hash(body.encode()), index, note.checkpoint.size, proof, note.checkpoint.root)


def _facts(body: str, path: str) -> dict[str, Any]:
    """Return the facts of an entry, with its action among them."""
    try:
        value = strict_json(body.encode(), _DEPTH)
        facts = {**value.get("facts", {}), "action": value["action"]}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _wrong(path, "An entry cannot be read.") from error
    if not all(isinstance(one, str | int) for one in facts.values()):
        raise _wrong(path, "An entry cannot be read.")
    return facts


def _parsed(model: type[M], files: Mapping[str, bytes], path: str) -> M:
    if path not in files:
        raise _wrong(path, "The file is missing.")
    try:
        value = parse_strict(model, files[path], reason=Reason.EVIDENCE_INVALID, what=path, most_bytes=_FILE_BYTES)
    except HansaError as error:
        raise _wrong(path, error.public) from error
    if file_bytes(value) != files[path]:
        raise _wrong(path, "It is not canonical JSON.")
    return value


def _wrong(path: str, words: str) -> HansaError:
    return HansaError(Reason.EVIDENCE_INVALID, f"{path}: {words}", field=path)
