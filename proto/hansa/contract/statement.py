"""The release statement: what a node says it has let out, signed once.

An in-toto Statement (in-toto/attestation, v1) in a DSSE envelope. Its subject
is what actually left: the summary's bytes, or their sealed form. It is made in
the transaction of the decision and is sent as those bytes for ever.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from hansa.contract.digests import DIGEST
from hansa.contract.directory import Key, NodeName, PersonName
from hansa.contract.errors import Reason
from hansa.contract.ids import DATASET_ID, FEDERATION_NAME
from hansa.contract.job import AnalysisRef
from hansa.contract.release import ReleaseClass
from hansa.contract.strict import Strict, parse_strict, pattern

STATEMENT_BYTES: Final = 64 << 10
IN_TOTO: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "urn:hansa:release:v1"

_HEX: Final = "[0-9a-f]{64}"
Digest = Annotated[str, pattern(DIGEST.pattern)]


class SubjectDigest(Strict):
    """in-toto's form of a digest."""

    sha256: Annotated[str, pattern(_HEX)]


class Subject(Strict):
    """What left: ``summary``, or ``sealed-summary`` (HPKE ciphertext)."""

    name: Literal["summary", "sealed-summary"]
    digest: SubjectDigest


class RuleOutcome(Strict):
    """One disclosure check; nothing in it says how near a figure was to a limit."""

    rule: Annotated[str, pattern("[a-z0-9-]{1,64}")]
    outcome: Literal["pass", "suppressed"]


class Decider(Strict):
    """Who let the summary out: the rules, or an output checker with the digest of their signed decision."""

    by: Literal["disclosure-rules"] | PersonName
    decision: Digest | None = None


class LogPlace(Strict):
    """The entry of the release in the node's audit log, which was committed with it."""

    index: int = Field(ge=0, strict=True)
    leaf_hash: Annotated[str, pattern(_HEX)]


class Release(Strict):
    """The predicate."""

    federation: Annotated[str, pattern(FEDERATION_NAME.pattern)]
    node: NodeName
    job_id: str = Field(max_length=36)
    # Digest of the job's signed payload.
    job_digest: Digest
    round: int = Field(ge=1, strict=True)
    run_id: Annotated[str, pattern("[0-9a-f]{32}")]
    attempt: int = Field(ge=1, strict=True)
    execution: int = Field(ge=1, strict=True)
    analysis: AnalysisRef
    dataset: Annotated[str, pattern(DATASET_ID.pattern)]
    snapshot: Digest
    policy_digest: Digest
    directory_version: int = Field(ge=1, strict=True)
    release_class: ReleaseClass
    checks: tuple[RuleOutcome, ...]
    # Digests of the approvals' payloads, of this node's own data holder.
    approvals: tuple[Digest, ...] = Field(min_length=1)
    deciders: tuple[Decider, ...] = Field(min_length=1)
    recipient_key: Key | None = None
    released_at: AwareDatetime
    log: LogPlace


class Statement(Strict):
    """The payload, of type ``application/vnd.in-toto+json``."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(default=IN_TOTO, alias="_type")
    subject: tuple[Subject]
    predicate_type: Literal["urn:hansa:release:v1"] = Field(default=PREDICATE, alias="predicateType")
    predicate: Release

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the node that signs."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), separators=(",", ":"), sort_keys=True).encode()


def parse_statement(payload: bytes) -> Statement:
    """Return the statement in ``payload``.

    Raises:
        HansaError: ``STATEMENT_INVALID``, naming the first field at fault.
    """
    return parse_strict(
        Statement, payload, reason=Reason.STATEMENT_INVALID, what="statement", most_bytes=STATEMENT_BYTES
    )
