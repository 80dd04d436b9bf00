"""The result of a job, read from its JSON form (docs/reference/result.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.contract.errors import Reason
from hansa.contract.strict import strict_json
from hansa.sdk.errors import RemoteError

RELEASED: Final = "released"


class _Part(BaseModel):
    # A newer coordinator may say more; what it says less of is an error.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Figures(_Part):
    """The figures of one variant at one place; None where nothing may be said."""

    people: int | None = None
    ac: int | None = None
    an: int | None = None
    af: float | None = None
    ci95: tuple[float, float] | None = None
    status: str = ""
    partial: bool = False
    strata: Mapping[str, Figures] = Field(default_factory=dict)

    @property
    def is_released(self) -> bool:
        """Say whether there are figures to show."""
        return self.status in {"", RELEASED} and self.ac is not None and self.an is not None


class VariantResult(_Part):
    """One variant, by node and pooled."""

    variant: str
    rsid: str | None = None
    countries: Mapping[str, Figures]
    pooled: Figures

    @property
    def title(self) -> str:
        """The rs id where there is one, else the position."""
        return self.rsid or self.variant


class NodeEnd(_Part):
    """How the run of one node ended."""

    node: str
    state: str
    reason: str | None = None
    statement: str | None = None


class Result(_Part):
    """A whole result."""

    job_id: str
    state: str
    # The summaries are for the researcher alone; without their key there are no figures.
    sealed: bool = False
    variants: tuple[VariantResult, ...]
    nodes: tuple[NodeEnd, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """Every node of the job, in the result's order."""
        named = [end.node for end in self.nodes]
        named += [name for variant in self.variants for name in variant.countries]
        return tuple(dict.fromkeys(named))


def parse_result(data: bytes) -> Result:
    """Return the result in ``data``.

    Raises:
        RemoteError: ``MALFORMED``; the coordinator sent something else.
    """
    try:
        return Result.model_validate(strict_json(data))
    except (ValidationError, ValueError, RecursionError) as error:
        raise RemoteError(Reason.MALFORMED, "The coordinator's result cannot be read.", field="result") from error
