"""Checks of a release statement against what it must speak of.

One function for both who receives statements: the coordinator when one
arrives, and the researcher's client offline. Whatever is wrong is
``STATEMENT_INVALID`` with the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hansa.contract.digests import digest
from hansa.contract.envelope import STATEMENT_TYPE, Signed, verify
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import run_id
from hansa.contract.job import JobSpec
from hansa.contract.limits import CLOCK_TOLERANCE
from hansa.contract.raw_keys import signing_key
from hansa.contract.release import people_needed, stricter
from hansa.contract.statement import Release, Statement, parse_statement

RULES: Final = "disclosure-rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the statement of one release must be about.

    ``payload`` is the job as signed, ``spec`` the same parsed; ``attempt`` is
    None where any will do.
    """

    payload: bytes
    spec: JobSpec
    node: str
    round: int = 1
    attempt: int | None = None


def verified_statement(signed: Signed, *, key: str, expected: Expected) -> Statement:
    """Return the statement if ``key`` (text) signed it and each field is as expected.

    The digest of what left is the caller's to compare (``subject_digest``).

    Raises:
        HansaError: ``STATEMENT_INVALID``.
    """
    try:
        verify(signed, payload_type=STATEMENT_TYPE, key=signing_key(key))
    except HansaError as error:
        raise _invalid(error.field, "it is not signed by the node") from error
    if signed.key_id != expected.node:
        raise _invalid("key_id", "another node has signed it")
    statement = parse_statement(signed.payload)
    _check_subject(statement, expected.spec)
    _check_fields(statement.predicate, expected)
    _check_decision(statement.predicate, expected.spec)
    return statement


def subject_name(spec: JobSpec) -> Literal["summary", "sealed-summary"]:
    """Return what kind of thing leaves for the job."""
    return "summary" if spec.recipient_key is None else "sealed-summary"


def subject_digest(statement: Statement) -> str:
    """Return the SHA-256 (hex) of what left."""
    return statement.subject[0].digest.sha256


def _check_subject(statement: Statement, spec: JobSpec) -> None:
    if statement.subject[0].name != subject_name(spec):
        raise _invalid("subject", f"the job asks for a {subject_name(spec)}")


def _check_fields(release: Release, expected: Expected) -> None:
    spec = expected.spec
    ref = spec.dataset_at(expected.node)
    wanted: dict[str, object] = {
        "federation": spec.federation,
        "node": expected.node,
        "job_id": spec.job_id,
        "job_digest": digest(expected.payload),
        "round": expected.round,
        "run_id": run_id(spec.job_id, expected.node, expected.round),
        "analysis": spec.analysis,
        "dataset": ref.dataset,
        "snapshot": ref.snapshot,
        "recipient_key": spec.recipient_key,
    }
    if expected.attempt is not None:
        wanted["attempt"] = expected.attempt
    for name, value in wanted.items():
        if getattr(release, name) != value:
            raise _invalid(name, "it speaks of something else")
    if release.directory_version < spec.directory_version:
        raise _invalid("directory_version", "it is older than the job's")
    if not spec.not_before - CLOCK_TOLERANCE <= release.released_at <= spec.not_after + CLOCK_TOLERANCE:
        raise _invalid("released_at", "the job was not valid then")


def _check_decision(release: Release, spec: JobSpec) -> None:
    """Check that as many different people let it out as its class asks, none of them the submitter."""
    if stricter(release.release_class, spec.release_class) != release.release_class:
        raise _invalid("release_class", "the job asks for a stricter one")
    people = {decider.by for decider in release.deciders if decider.by != RULES}
    signed = all((decider.decision is None) == (decider.by == RULES) for decider in release.deciders)
    enough = len(people) >= people_needed(release.release_class) and len(people) == len(release.deciders)
    by_rules = not people and people_needed(release.release_class) == 0 and len(release.deciders) == 1
    if not signed or not (by_rules or (people and enough)) or spec.submitter in people:
        raise _invalid("deciders", f"the release class is {release.release_class.value}")


def _invalid(field: str, why: str) -> HansaError:
    return HansaError(Reason.STATEMENT_INVALID, f"The release statement is not valid: {why} ({field}).", field=field)
