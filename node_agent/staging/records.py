"""From a VCF's records to biallelic variants with one genotype per person.

cyvcf2 reads; what it raises is never shown, for htslib quotes the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cyvcf2
import numpy as np
import numpy.typing as npt
from cyvcf2.cyvcf2 import set_htslib_log_level

from hansa.contract.errors import HansaError, Reason
from hansa.contract.variants import RS_ID
from node_agent.staging.builds import BUILDS
from node_agent.staging.vcf_file import VcfHeader, autosome, is_intact, shown_contig, truncated

Genotypes = npt.NDArray[np.int8]

MISSING: Final = 3
_HAPLOID_PAD: Final = -2
_DIPLOID_COLUMNS: Final = 3  # two alleles and the phase
_BASES: Final = re.compile(r"[ACGT]+")
_ALLELE_BASES: Final = 1000  # as in hansa.contract.variants
_SILENT: Final = 0
_DEFAULT_LOG_LEVEL: Final = 3

# What is counted while records are read.
SYMBOLIC: Final = "symbolic"
NOT_ACGT: Final = "not_acgt"
TOO_LONG: Final = "too_long"
NO_ALT: Final = "no_alt"
MULTIALLELIC: Final = "multiallelic_split"
HALF_CALLS: Final = "half_calls"
SKIPPED: Final = (SYMBOLIC, NOT_ACGT, TOO_LONG, NO_ALT, MULTIALLELIC, HALF_CALLS)


@dataclass(frozen=True, slots=True)
class BiallelicVariant:
    """One alternative allele: per person 0, 1 or 2 copies of it, or ``MISSING``."""

    chrom: str
    pos: int
    rsid: str
    ref: str
    alt: str
    genotypes: Genotypes


class VcfRecords:
    """The records of a VCF whose file and header were checked. Read it once.

    ``skipped`` counts, by cause, what is left out or changed on the way.
    """

    def __init__(self, vcf: Path, header: VcfHeader, build: str) -> None:
        self.skipped: Counter[str] = Counter(dict.fromkeys(SKIPPED, 0))
        self._vcf = vcf
        self._people = len(header.samples)
        self._order = _Order(BUILDS[build])
        self._number = 0

    def __iter__(self) -> Iterator[BiallelicVariant]:
        """Yield the variants in the file's order.

        Raises:
            HansaError: ``VCF_*``; the first thing that is wrong with the file.
        """
        # htslib writes what it reads to stderr.
        set_htslib_log_level(_SILENT)
        try:
            for record in self._raw():
                self._number += 1
                yield from self._split(record)
        finally:
            set_htslib_log_level(_DEFAULT_LOG_LEVEL)

    def _raw(self) -> Iterator[Any]:
        try:
            reader = cyvcf2.VCF(str(self._vcf.resolve()))
        except Exception:  # cyvcf2 raises Exception itself
            if not is_intact(self._vcf):
                raise truncated() from None
            raise HansaError(Reason.VCF_UNREADABLE, "The VCF's header is not valid.", field="vcf") from None
        try:
            while True:
                try:
                    record = next(reader)
                except StopIteration:
                    return
                except Exception:  # as above; its text may quote the record
                    self._number += 1
                    raise (self._bad("it cannot be parsed") if is_intact(self._vcf) else truncated()) from None
                yield record
        finally:
            reader.close()

    def _bad(self, what: str, *, place: str = "") -> HansaError:
        where = f" ({place})" if place else ""
        return HansaError(Reason.VCF_RECORD_INVALID, f"The VCF's record {self._number}{where}: {what}.", field="vcf")

    def _split(self, record: Any) -> Iterator[BiallelicVariant]:
        contig, pos = str(record.CHROM), int(record.POS)
        chrom = autosome(contig)
        if chrom is None:
            raise self._foreign(contig)
        place = f"{chrom}:{pos}"
        if complaint := self._order.step(chrom, pos):
            raise self._bad(complaint, place=place)
        ref, alts = record.REF.upper(), [alt.upper() for alt in record.ALT]
        self.skipped[NO_ALT] += not alts
        self.skipped[MULTIALLELIC] += len(alts) > 1
        kept = [(index, alt) for index, alt in enumerate(alts, start=1) if self._keeps(ref, alt)]
        if not kept:
            return
        alleles, missing = self._alleles(record, len(alts), place)
        rsid = next((name for name in (record.ID or "").split(";") if RS_ID.fullmatch(name)), ".")
        for index, alt in kept:
            if ref == alt:
                raise self._bad("REF and ALT are the same", place=place)
            if not self._order.is_new(ref, alt):
                raise HansaError(
                    Reason.VCF_RECORD_DUPLICATE, f"The VCF holds one variant at {place} twice.", field="vcf"
                )
            yield BiallelicVariant(chrom, pos, rsid, ref, alt, _copies(alleles, missing, index))

    def _foreign(self, contig: str) -> HansaError:
        shown = shown_contig(contig)
        if shown is None:
            return self._bad("it does not begin with a contig's name")
        return HansaError(
            Reason.VCF_CONTIG_UNSUPPORTED,
            f"The VCF holds records of {shown}; only the autosomes 1 to 22 are supported. "
            "Keep those with `bcftools view -r`.",
            field="vcf",
        )

    def _keeps(self, ref: str, alt: str) -> bool:
        if not alt or alt[0] in "<*" or "[" in alt or "]" in alt or "." in alt:
            self.skipped[SYMBOLIC] += 1
        elif not _BASES.fullmatch(ref) or not _BASES.fullmatch(alt):
            self.skipped[NOT_ACGT] += 1
        elif max(len(ref), len(alt)) > _ALLELE_BASES:
            self.skipped[TOO_LONG] += 1
        else:
            return True
        return False

    def _alleles(self, record: Any, alts: int, place: str) -> tuple[Any, npt.NDArray[np.bool_] | None]:
        """Return the alleles (people, 2) and who has no genotype (None: everybody has)."""
        try:
            calls = record.genotype.array()
        except Exception:  # cyvcf2 raises Exception itself
            raise self._bad("it has no genotypes (GT)", place=place) from None
        if calls.shape == (self._people, _DIPLOID_COLUMNS - 1) and (calls[:, 0] < 0).all():
            return calls, np.ones(self._people, np.bool_)  # a lone "." for everybody
        if calls.shape != (self._people, _DIPLOID_COLUMNS):
            raise self._bad("a genotype of an autosome must have two alleles", place=place)
        alleles = calls[:, :2]
        if alleles.max() > alts:
            raise self._bad("a genotype names an allele that the record does not have", place=place)
        if alleles.min() >= 0:
            return alleles, None
        return alleles, self._missing(alleles, place)

    def _missing(self, alleles: Any, place: str) -> npt.NDArray[np.bool_]:
        first, second = alleles[:, 0], alleles[:, 1]
        haploid = second == _HAPLOID_PAD
        # A lone "." is how many tools write a missing diploid genotype.
        if (first[haploid] >= 0).any():
            raise self._bad("a genotype of an autosome must have two alleles", place=place)
        self.skipped[HALF_CALLS] += int((((first < 0) != (second < 0)) & ~haploid).sum())
        missing: npt.NDArray[np.bool_] = (first < 0) | (second < 0)
        return missing


def _copies(alleles: Any, missing: npt.NDArray[np.bool_] | None, index: int) -> Genotypes:
    if missing is not None and missing.all():
        return np.full(len(missing), MISSING, np.int8)
    mine = alleles == index
    copies: Genotypes = mine[:, 0].view(np.int8) + mine[:, 1].view(np.int8)
    if missing is not None:
        copies[missing] = MISSING
    return copies


class _Order:
    """Where the reading stands: contigs in one piece, positions ascending."""

    def __init__(self, lengths: Any) -> None:
        self._lengths = lengths
        self._chrom, self._pos = "", 0
        self._done: set[str] = set()
        self._here: set[tuple[str, str]] = set()

    def step(self, chrom: str, pos: int) -> str:
        """Go on to a record; return what is wrong with its place, or nothing."""
        if not 1 <= pos <= self._lengths[chrom]:
            return "the position is not on the chromosome"
        if (chrom, pos) == (self._chrom, self._pos):
            return ""
        if chrom == self._chrom and pos < self._pos:
            return "the records are not sorted; sort the VCF with `bcftools sort`"
        if chrom != self._chrom and chrom in self._done:
            return "the chromosome's records are not together; sort the VCF with `bcftools sort`"
        self._done.add(chrom)
        self._chrom, self._pos = chrom, pos
        self._here.clear()
        return ""

    def is_new(self, ref: str, alt: str) -> bool:
        known = (ref, alt) in self._here
        self._here.add((ref, alt))
        return not known
