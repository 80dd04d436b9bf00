"""Whether a data holder's signed yes counts at this node, and for which job: pure.

An approval counts while its approver is a data holder of this node in the
directory, under the key that this node's own policy pins: neither the
federation's operators nor the coordinator can put one in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hansa.contract.approval import Approval, JobApproval, StandingApproval, parse_approval
from hansa.contract.digests import digest
from hansa.contract.directory import Directory, Role
from hansa.contract.envelope import APPROVAL_TYPE, Signed, verify
from hansa.contract.errors import HansaError, Reason
from hansa.contract.job import JobSpec
from hansa.contract.manifest import Manifest, RegionParameter, VariantsParameter
from hansa.contract.raw_keys import key_digest, signing_key
from hansa.contract.variants import parse_region
from node_agent.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Site:
    """Which node this is."""

    federation: str
    node: str


@dataclass(frozen=True, slots=True)
class HeldApproval:
    """An approval in the node's store, not revoked. ``digest`` is of its payload."""

    approval_id: str
    digest: str
    signed: Signed


@dataclass(frozen=True, slots=True)
class QuestionSize:
    """How much a job asks for; zero where it asks in the other way."""

    variants: int = 0
    region_bases: int = 0


def question_size(manifest: Manifest, parameters: Mapping[str, str]) -> QuestionSize:
    """Return the size of the question that ``parameters``, in normal form, put."""
    variants = bases = 0
    for name, value in parameters.items():
        match manifest.parameters[name]:
            case RegionParameter():
                bases = max(bases, parse_region(value).length)
            case VariantsParameter():
                variants = max(variants, value.count(",") + 1)
            case _:
                pass
    return QuestionSize(variants, bases)


def checked_approval(signed: Signed, *, site: Site, directory: Directory, policy: Policy) -> Approval:
    """Return the approval in ``signed`` if one of this node's own data holders gave it.

    Raises:
        HansaError: ``APPROVAL_INVALID``.
    """
    person = directory.person(signed.key_id)
    if person is None or not person.has(Role.DATA_HOLDER, site.node):
        raise _invalid(f"The directory has no data holder of {site.node} of this name.", "person")
    if person.has(Role.NODE_OPERATOR, site.node):
        raise _invalid("Who operates the node does not approve for its data.", "person")
    if not policy.pins_data_holder(person.name, key_digest(person.signing_key)):
        raise _invalid(
            f"The node's policy does not name {person.name} with this key as a data holder; "
            "see `hansa-node policy allow data-holder`.",
            "person",
        )
    try:
        verify(signed, payload_type=APPROVAL_TYPE, key=signing_key(person.signing_key))
    except HansaError as error:
        raise _invalid(f"It is not signed with the key that the directory has of {person.name}.", "key") from error
    approval = parse_approval(signed.payload)
    if approval.approver != person.name:
        raise _invalid("It names another approver than its signer.", "approver")
    if (approval.federation, approval.node) != (site.federation, site.node):
        raise _invalid("It is for another node.", "node")
    return approval


def speaks_of(approval: Approval, spec: JobSpec, payload: bytes, now: datetime) -> bool:
    """Say whether ``approval`` is about this job at this time; how large it is, is asked elsewhere.

    Args:
        approval: one that ``checked_approval`` has returned.
        spec: the job.
        payload: its bytes as signed.
        now: the time, or when the approval was taken.
    """
    match approval:
        case JobApproval():
            exactly = approval.job_id == spec.job_id and approval.job_digest == digest(payload)
            return exactly and approval.approver != spec.submitter
        case StandingApproval():
            return approval.covers(spec, now)


def large_enough(approval: Approval, size: QuestionSize) -> bool:
    """Say whether a question of ``size`` is within what ``approval`` allows; for one job, it is that job's."""
    if isinstance(approval, JobApproval):
        return True
    limits = approval.limits
    return size.variants <= limits.max_variants and size.region_bases <= limits.max_region_bases


def _invalid(words: str, field: str) -> HansaError:
    return HansaError(Reason.APPROVAL_INVALID, f"The approval does not count here. {words}", field=field)
