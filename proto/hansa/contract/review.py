"""How an analysis comes to be trusted: its author signs it, reviewers vote, each node counts.

All are DSSE envelopes over the digest of the bundle, so that any change of a
file is another analysis, with no votes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime

from hansa.contract.directory import Directory, PersonName, Role
from hansa.contract.envelope import AUTHORSHIP_TYPE, VOTE_TYPE, Signed, verify
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import AnalysisRef
from hansa.contract.raw_keys import signing_key
from hansa.contract.strict import Strict, parse_strict, pattern, to_bytes

REVIEWERS_NEEDED: Final = 2
ORGANISATIONS_NEEDED: Final = 2
_VOTE_BYTES: Final = 16 << 10
_COMMENT: Final = r"[\x20-\x7e]{0,2000}"


class Authorship(Strict):
    """The payload with which an author puts their name to a bundle."""

    v: Literal[1] = 1
    analysis: AnalysisRef
    author: PersonName
    at: AwareDatetime

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the author."""
        return to_bytes(self)


class Vote(Strict):
    """The payload of a reviewer's vote."""

    v: Literal[1] = 1
    analysis: AnalysisRef
    reviewer: PersonName
    verdict: Literal["approve", "reject"]
    comment: Annotated[str, pattern(_COMMENT)] = ""
    at: AwareDatetime

    def to_bytes(self) -> bytes:
        """Return the payload. Called once, by the reviewer."""
        return to_bytes(self)


def parse_authorship(payload: bytes) -> Authorship:
    """Return the authorship in ``payload``.

    Raises:
        HansaError: ``VOTE_INVALID``.
    """
    return parse_strict(Authorship, payload, reason=Reason.VOTE_INVALID, what="authorship", most_bytes=_VOTE_BYTES)


def parse_vote(payload: bytes) -> Vote:
    """Return the vote in ``payload``.

    Raises:
        HansaError: ``VOTE_INVALID``.
    """
    return parse_strict(Vote, payload, reason=Reason.VOTE_INVALID, what="vote", most_bytes=_VOTE_BYTES)


@dataclass(frozen=True, slots=True)
class Count:
    """What the votes on one bundle come to. ``ignored`` says by key id why a vote did not count."""

    author: str
    approved_by: tuple[str, ...]
    rejected_by: tuple[str, ...]
    organisations: frozenset[str]
    ignored: Mapping[str, str]

    @property
    def approved(self) -> bool:
        """Whether the analysis may run: two reviewers of two organisations say yes and none says no."""
        return (
            bool(self.author)
            and len(self.approved_by) >= REVIEWERS_NEEDED
            and len(self.organisations) >= ORGANISATIONS_NEEDED
            and not self.rejected_by
        )


def count_votes(directory: Directory, analysis: AnalysisRef, *, authorship: Signed, votes: Sequence[Signed]) -> Count:
    """Return what the envelopes come to for ``analysis``.

    A vote counts once per person, of a reviewer in the directory, under their
    own key, on exactly this analysis, and never the author's own.
    """
    author = _author(directory, analysis, authorship)
    ignored: dict[str, str] = {}
    verdicts: dict[str, Vote] = {}
    for signed in votes:
        try:
            vote = _checked(directory, analysis, signed)
        except HansaError as error:
            ignored[ascii(signed.key_id)[1:-1][:64]] = error.public
            continue
        if vote.reviewer == author:
            ignored[vote.reviewer] = "The author does not review."
        elif verdicts.setdefault(vote.reviewer, vote) is not vote:
            # Two votes of one person: the one that stops wins, whatever the order they came in.
            verdicts[vote.reviewer] = vote if vote.verdict == "reject" else verdicts[vote.reviewer]
    approved = tuple(sorted(name for name, vote in verdicts.items() if vote.verdict == "approve"))
    people = (directory.person(name) for name in approved)
    return Count(
        author=author,
        approved_by=approved,
        rejected_by=tuple(sorted(set(verdicts) - set(approved))),
        organisations=frozenset(person.organisation for person in people if person is not None),
        ignored=ignored,
    )


def _author(directory: Directory, analysis: AnalysisRef, signed: Signed) -> str:
    """Return who has put their name to the analysis; empty if nobody rightly did."""
    person = directory.person(signed.key_id)
    if person is None:
        return ""
    try:
        verify(signed, payload_type=AUTHORSHIP_TYPE, key=signing_key(person.signing_key))
        claim = parse_authorship(signed.payload)
    except HansaError:
        return ""
    return person.name if claim.author == person.name and claim.analysis == analysis else ""


def _checked(directory: Directory, analysis: AnalysisRef, signed: Signed) -> Vote:
    person = directory.person(signed.key_id)
    if person is None or not person.has(Role.REVIEWER):
        raise HansaError(Reason.VOTE_INVALID, "The directory has no reviewer of this name.", field="key_id")
    verify(signed, payload_type=VOTE_TYPE, key=signing_key(person.signing_key))
    vote = parse_vote(signed.payload)
    if vote.reviewer != person.name:
        raise HansaError(Reason.VOTE_INVALID, "The vote names another reviewer than its signer.", field="reviewer")
    if vote.analysis != analysis:
        raise HansaError(Reason.VOTE_INVALID, "The vote is on another analysis.", field="analysis")
    return vote
