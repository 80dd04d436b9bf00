"""The policy of a node: who and what it admits, and how little may leave.

``policy.toml``. What it does not say is denied: without the file nobody may
run anything, and a released figure needs a person's decision. Unknown keys are
errors, because a misspelt limit would otherwise be no limit.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hansa.contract.digests import DIGEST, canonical, digest
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import ANALYSIS_NAME, ANALYSIS_VERSION, PERSON_NAME
from hansa.contract.limits import MAX_VARIANTS
from hansa.contract.manifest import Limits

# Below these a figure is a person (issue: cohort of 20, 10 carriers and 10 others).
COHORT_FLOOR: Final = 20
CARRIERS_FLOOR: Final = 10
ANYBODY: Final = "*"

_GENOME: Final = 4_000_000_000
_COUNT: Final = 1_000_000

Submitter = Annotated[str, StringConstraints(pattern=rf"^(?:\*|{PERSON_NAME.pattern})$")]
DataHolder = Annotated[str, StringConstraints(pattern=rf"^{PERSON_NAME.pattern}={DIGEST.pattern}$")]
AnalysisKey = Annotated[str, StringConstraints(pattern=rf"^{ANALYSIS_NAME.pattern}@{ANALYSIS_VERSION.pattern}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class AdmissionPolicy(_Strict):
    """Whose jobs are run, which analyses, and how large a question may be."""

    submitters: tuple[Submitter, ...] = ()
    analyses: tuple[AnalysisKey, ...] = ()
    max_region_bases: int = Field(default=1_000_000, ge=1, le=_GENOME)
    max_variants: int = Field(default=1000, ge=1, le=MAX_VARIANTS)
    max_active_runs: int = Field(default=2, ge=1, le=_COUNT)
    max_queued_runs: int = Field(default=1000, ge=1, le=_COUNT)
    # A job that names no passport for this node is declined.
    require_passport: bool = False


class ApprovalPolicy(_Strict):
    """Whose yes a job needs: data holders as ``name=sha256:<digest of their signing key>``.

    The directory names them too; both have to, so that nobody outside of the
    node can add one. Without any, every job waits until its deadline.
    """

    data_holders: tuple[DataHolder, ...] = ()


class ReleasePolicy(_Strict):
    """How many people look at a cleared summary before it leaves; a job may ask for more, never for fewer."""

    mode: Literal["manual", "auto", "dual"] = "manual"


class DisclosurePolicy(_Strict):
    """The smallest numbers of people behind a figure; may be raised, never lowered."""

    min_cohort: int = Field(default=COHORT_FLOOR, ge=COHORT_FLOOR, le=_COUNT)
    min_carriers: int = Field(default=CARRIERS_FLOOR, ge=CARRIERS_FLOOR, le=_COUNT)


class LimitsPolicy(_Strict):
    """Upper bounds over what a manifest asks for."""

    wall_seconds: int = Field(default=3600, ge=1, le=30 * 24 * 3600)
    memory_bytes: int = Field(default=4 << 30, ge=64 << 20, le=1 << 44)
    cpus: float = Field(default=2.0, ge=0.05, le=64)
    pids: int = Field(default=512, ge=16, le=4096)
    scratch_bytes: int = Field(default=4 << 30, ge=1 << 20, le=1 << 50)

    def bound(self, asked: Limits) -> Limits:
        """Return ``asked`` cut to what this node allows."""
        return asked.model_copy(
            update={name: min(getattr(asked, name), value) for name, value in self.model_dump().items()}
        )


class RetentionPolicy(_Strict):
    """How long the working folder and log of an ended run are kept."""

    run_days: int = Field(default=30, ge=0, le=3660)


class Policy(_Strict):
    """A node's policy; ``Policy()`` admits nothing."""

    admission: AdmissionPolicy = AdmissionPolicy()
    approval: ApprovalPolicy = ApprovalPolicy()
    release: ReleasePolicy = ReleasePolicy()
    disclosure: DisclosurePolicy = DisclosurePolicy()
    limits: LimitsPolicy = LimitsPolicy()
    retention: RetentionPolicy = RetentionPolicy()

    def admits_submitter(self, name: str) -> bool:
        """Say whether jobs that ``name`` signed are run."""
        return ANYBODY in self.admission.submitters or name in self.admission.submitters

    def admits_analysis(self, name: str, version: str) -> bool:
        """Say whether this version of the analysis is run."""
        return f"{name}@{version}" in self.admission.analyses

    def pins_data_holder(self, name: str, key_digest: str) -> bool:
        """Say whether ``name`` with the key of this digest may approve jobs here."""
        return data_holder(name, key_digest) in self.approval.data_holders


def data_holder(name: str, key_digest: str) -> str:
    """Return the entry that pins a data holder."""
    return f"{name}={key_digest}"


def parse_policy(text: str) -> Policy:
    """Return the policy in the TOML ``text``.

    Raises:
        HansaError: ``POLICY_INVALID``; the field names the first key at fault.
    """
    try:
        return policy_of(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise HansaError(Reason.POLICY_INVALID, f"The policy is not TOML: {error}.") from error


def policy_of(raw: Mapping[str, Any]) -> Policy:
    """Return the policy in ``raw``, a value of TOML or JSON.

    Raises:
        HansaError: ``POLICY_INVALID``; the field names the first key at fault.
    """
    try:
        # Through JSON, so that file and API are judged by one strict reading.
        return Policy.model_validate_json(json.dumps(raw, allow_nan=False))
    except ValidationError as error:
        raise _fault(error) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise HansaError(Reason.POLICY_INVALID, "The policy holds a date, an infinity or the like.") from error


def _fault(error: ValidationError) -> HansaError:
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "policy"
    why = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
    return HansaError(Reason.POLICY_INVALID, f"{key[:120]!s}: {why}.", field=key[:120])


def to_toml(policy: Policy) -> str:
    """Return ``policy`` as TOML with every key, the same text for the same policy."""
    lines = ["# The policy of this node. Change it with `hansa-node policy`, or here; unknown keys are errors."]
    for section, values in policy.model_dump(mode="json").items():
        lines += ["", f"[{section}]"]
        # JSON's strings, numbers and lists of strings are TOML's too: all text here is plain ASCII by pattern.
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def policy_digest(policy: Policy) -> str:
    """Return the digest that names this policy: equal policies, equal digests."""
    return digest(canonical(policy.model_dump(mode="json")))


def with_value(policy: Policy, key: str, text: str) -> Policy:
    """Return ``policy`` with one value changed, as ``hansa-node policy set`` has it.

    Args:
        policy: the policy to start from.
        key: ``section.key``; ``release`` alone is short for ``release.mode``.
        text: the value as typed.

    Raises:
        HansaError: ``POLICY_INVALID``.
    """
    section, _, name = ("release.mode" if key == "release" else key).partition(".")
    raw = policy.model_dump(mode="json")
    if name not in raw.get(section, {}):
        known = ", ".join(f"{part}.{one}" for part, values in raw.items() for one in values)
        raise HansaError(Reason.POLICY_INVALID, f"There is no key {key[:60]!a}; there are: {known}.", field=key[:60])
    if isinstance(raw[section][name], list):
        raise HansaError(
            Reason.POLICY_INVALID, f"{key} is a list; use `hansa-node policy allow` and `disallow`.", field=key
        )
    raw[section][name] = _typed(text)
    return policy_of(raw)


def _typed(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", text):
        return float(text)
    return text


ListKey = Literal["submitters", "analyses", "data_holders"]
_SECTIONS: Final[Mapping[ListKey, str]] = {
    "submitters": "admission",
    "analyses": "admission",
    "data_holders": "approval",
}


def with_entry(policy: Policy, key: ListKey, entry: str) -> Policy:
    """Return ``policy`` with ``entry`` admitted; a repeat changes nothing.

    Raises:
        HansaError: ``POLICY_INVALID``; the entry has not the shape of one.
    """
    entries = _entries(policy, key)
    return _with_entries(policy, key, entries if entry in entries else (*entries, entry))


def without_entry(policy: Policy, key: ListKey, entry: str) -> Policy:
    """Return ``policy`` with ``entry`` no longer admitted.

    Args:
        policy: the policy to start from.
        key: the list.
        entry: the entry; a data holder's is found by the name alone.

    Raises:
        HansaError: ``POLICY_INVALID``; it was not admitted by this name, so
            that a misspelt one is not taken for done.
    """
    entries = _entries(policy, key)
    kept = tuple(one for one in entries if entry not in (one, one.partition("=")[0]))
    if kept == entries:
        raise HansaError(Reason.POLICY_INVALID, f"{_SECTIONS[key]}.{key} has no entry {entry[:60]!a}.", field=key)
    return _with_entries(policy, key, kept)


def _entries(policy: Policy, key: ListKey) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(getattr(policy, _SECTIONS[key]), key)
    return found


def _with_entries(policy: Policy, key: ListKey, entries: tuple[str, ...]) -> Policy:
    raw = policy.model_dump(mode="json")
    raw[_SECTIONS[key]][key] = list(entries)
    return policy_of(raw)
