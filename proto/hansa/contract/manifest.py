"""The manifest of an analysis: what it takes, what it gives, what may leave.

``manifest.json`` stands in the bundle's folder. Unknown keys are errors. The
parameter types form a closed list, so that no value reaches a workflow that
Hansa has not parsed; the summary's schema is closed too, so that no value
leaves that Hansa cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import ANALYSIS_NAME, ANALYSIS_VERSION
from hansa.contract.limits import MANIFEST_BYTES, MAX_VARIANTS
from hansa.contract.strict import refused, strict_json
from hansa.contract.variants import parse_region, parse_variants

# Brackets in a description count too.
_MOST_DEPTH: Final = 64
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class VariantsParameter(_Strict):
    """A comma-separated list of variants or rs ids."""

    type: Literal["variants"]
    description: str = ""
    required: bool = False


class RegionParameter(_Strict):
    """One region, ``chrom:start-end``."""

    type: Literal["region"]
    description: str = ""
    required: bool = False


class ChoiceParameter(_Strict):
    """One of a closed list of words."""

    type: Literal["choice"]
    description: str = ""
    required: bool = False
    choices: tuple[str, ...] = Field(min_length=1)


Parameter = Annotated[VariantsParameter | RegionParameter | ChoiceParameter, Field(discriminator="type")]


class ArraySpec(_Strict):
    """One array of the summary.

    ``released`` false means that the array serves the disclosure check and
    never leaves the node.
    """

    dtype: Literal["int64", "float64"]
    axes: tuple[str, ...]
    merge: Literal["sum", "min", "max"]
    released: bool


class AxisSpec(_Strict):
    """One axis of the summary: what its labels are."""

    labels: Literal["variant", "choice"]
    choices: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _choices_belong_to_choice(self) -> AxisSpec:
        if (self.labels == "choice") != bool(self.choices):
            raise ValueError("an axis of kind choice, and no other, lists its choices")
        return self


class SummarySpec(_Strict):
    """The closed schema of the one summary."""

    axes: Mapping[str, AxisSpec]
    arrays: Mapping[str, ArraySpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _axes_are_declared(self) -> SummarySpec:
        unknown = {axis for array in self.arrays.values() for axis in array.axes} - set(self.axes)
        if unknown:
            raise ValueError(f"arrays use undeclared axes {sorted(unknown)}")
        return self


class Limits(_Strict):
    """What one run may use at most; a node's policy may be stricter."""

    wall_seconds: int = Field(default=3600, ge=1, le=30 * 24 * 3600)
    memory_bytes: int = Field(default=2 << 30, ge=64 << 20)
    cpus: float = Field(default=1.0, gt=0, le=64)
    pids: int = Field(default=128, ge=16, le=4096)
    scratch_bytes: int = Field(default=1 << 30, ge=1 << 20)
    summary_bytes: int = Field(default=16 << 20, ge=1 << 10, le=64 << 20)


class Manifest(_Strict):
    """An analysis as its bundle declares it."""

    # Anchored: pydantic searches, it does not match the whole.
    name: str = Field(pattern=f"^(?:{ANALYSIS_NAME.pattern})$")
    version: str = Field(pattern=f"^(?:{ANALYSIS_VERSION.pattern})$")
    title: str = Field(max_length=200)
    description: str = Field(default="", max_length=4000)
    snakefile: str = Field(default="Snakefile", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    parameters: Mapping[str, Parameter]
    one_of: tuple[tuple[str, ...], ...] = ()
    summary: SummarySpec
    # The rule set that judges the summary, by name; see node_agent/disclosure.
    disclosure: Literal["allele-counts"]
    limits: Limits = Limits()
    # Whether an execution may begin with what finished rules of a lost one left.
    resumable: bool = False

    @model_validator(mode="after")
    def _names_are_plain(self) -> Manifest:
        for name in (*self.parameters, *self.summary.axes, *self.summary.arrays):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a plain name")
        if {name for group in self.one_of for name in group} - set(self.parameters):
            raise ValueError("one_of names an undeclared parameter")
        return self


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest in ``data``.

    Raises:
        HansaError: ``MANIFEST_INVALID``, naming the first field at fault.
    """
    if len(data) > MANIFEST_BYTES:
        raise HansaError(Reason.MANIFEST_INVALID, f"The manifest is over {MANIFEST_BYTES} bytes.", field="manifest")
    try:
        # What can be read in two ways is refused; the model reads JSON itself.
        strict_json(data, max_depth=_MOST_DEPTH)
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise refused(error, reason=Reason.MANIFEST_INVALID, what="manifest") from error
    except (ValueError, RecursionError) as error:
        raise HansaError(Reason.MANIFEST_INVALID, "The manifest is not strict JSON.", field="manifest") from error


def check_parameters(manifest: Manifest, given: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters in normal form, in the manifest's order.

    Raises:
        HansaError: ``PARAMETER_UNKNOWN``, ``PARAMETER_MISSING`` or
            ``PARAMETER_INVALID``, with the parameter as ``field``.
    """
    for name in given:
        if name not in manifest.parameters:
            known = ", ".join(manifest.parameters)
            raise HansaError(
                Reason.PARAMETER_UNKNOWN,
                f"{manifest.name} has no parameter {name[:40]!a}; it has: {known}.",
                field=ascii(name[:40])[1:-1],
            )
    for name, parameter in manifest.parameters.items():
        if parameter.required and name not in given:
            raise HansaError(Reason.PARAMETER_MISSING, f"{manifest.name} needs --param {name}=…", field=name)
    for group in manifest.one_of:
        if sum(name in given for name in group) != 1:
            raise HansaError(
                Reason.PARAMETER_MISSING, f"{manifest.name} needs exactly one of: {', '.join(group)}.", field=group[0]
            )
    return {name: _normal(name, spec, given[name]) for name, spec in manifest.parameters.items() if name in given}


def _normal(name: str, spec: Parameter, value: str) -> str:
    try:
        match spec:
            case VariantsParameter():
                names = parse_variants(value)
                if len(names) > MAX_VARIANTS:
                    raise ValueError(f"at most {MAX_VARIANTS} variants, got {len(names)}")
                return ",".join(names)
            case RegionParameter():
                return str(parse_region(value))
            case ChoiceParameter():
                if value not in spec.choices:
                    raise ValueError(f"{value[:40]!a} is not one of: {', '.join(spec.choices)}")
                return value
    except ValueError as error:
        raise HansaError(Reason.PARAMETER_INVALID, f"{name}: {error}.", field=name) from error
