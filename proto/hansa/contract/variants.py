"""Variants and regions as researchers write them, in one normal form.

A variant is ``chrom:pos:ref:alt`` with ``chrom`` 1 to 22 without ``chr``, ``pos``
1-based and ``ref``, ``alt`` of A, C, G, T; or an rs id. Autosomes only for now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_CHROM: Final = r"(?:chr)?(?P<chrom>[1-9]|1[0-9]|2[0-2])"
_VARIANT: Final = re.compile(
    rf"{_CHROM}:(?P<pos>[1-9][0-9]{{0,9}}):(?P<ref>[ACGT]{{1,1000}}):(?P<alt>[ACGT]{{1,1000}})"
)
_REGION: Final = re.compile(rf"{_CHROM}:(?P<start>[1-9][0-9]{{0,9}})-(?P<end>[1-9][0-9]{{0,9}})")
RS_ID: Final = re.compile(r"rs[1-9][0-9]{0,14}")
AUTOSOMES: Final = tuple(str(number) for number in range(1, 23))


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """One biallelic variant; orders by position on the genome."""

    chrom: int
    pos: int
    ref: str
    alt: str

    def __str__(self) -> str:
        return f"{self.chrom}:{self.pos}:{self.ref}:{self.alt}"


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of one chromosome, 1-based, both ends included."""

    chrom: int
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.chrom}:{self.start}-{self.end}"

    @property
    def length(self) -> int:
        """Number of bases."""
        return self.end - self.start + 1

    def holds(self, variant: Variant) -> bool:
        """Say whether the variant's position lies within."""
        return variant.chrom == self.chrom and self.start <= variant.pos <= self.end


def parse_variant(text: str) -> Variant:
    """Return the variant that ``text`` names by position.

    Raises:
        ValueError: with words for the researcher.
    """
    match = _VARIANT.fullmatch(text.strip())
    if match is None or match["ref"] == match["alt"]:
        raise ValueError(f"{_shown(text)} is not chrom:pos:ref:alt (1-22, ACGT) or an rs id")
    return Variant(int(match["chrom"]), int(match["pos"]), match["ref"], match["alt"])


def parse_variants(text: str) -> tuple[str, ...]:
    """Return the normal forms of a comma-separated list, without repeats, in order.

    Raises:
        ValueError: with words for the researcher; the list is empty or one
            element is neither a variant nor an rs id.
    """
    names = []
    for part in text.split(","):
        name = part.strip()
        names.append(name if RS_ID.fullmatch(name) else str(parse_variant(name)))
    return tuple(dict.fromkeys(names))


def parse_region(text: str) -> Region:
    """Return the region that ``text`` names.

    Raises:
        ValueError: with words for the researcher.
    """
    match = _REGION.fullmatch(text.strip())
    if match is None or int(match["start"]) > int(match["end"]):
        raise ValueError(f"{_shown(text)} is not chrom:start-end (1-22, start not after end)")
    return Region(int(match["chrom"]), int(match["start"]), int(match["end"]))


def _shown(text: str) -> str:
    return ascii(text.strip()[:60])
