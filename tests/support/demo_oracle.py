"""What the demo data says, computed apart from Hansa: by plink2 and by cyvcf2.

The demo data has one variant per position, so the disclosure rule is its simple
form: a cell passes with at least 20 people genotyped, 10 carriers and 10 people
with another allele; the strata of a variant leave all together or not at all.
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cyvcf2

_COHORT, _SMALL = 20, 10
SEXES: Final = ("female", "male")


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of one variant in one group of people."""

    people: int
    ac: int
    carriers: int
    others: int

    @property
    def an(self) -> int:
        """The called alleles; everybody is diploid."""
        return 2 * self.people

    @property
    def passes(self) -> bool:
        """Whether these figures may leave."""
        return self.people >= _COHORT and self.carriers >= _SMALL and self.others >= _SMALL


@dataclass(frozen=True, slots=True)
class Truth:
    """One variant at one country: everybody, and by sex."""

    everybody: Counts
    by_sex: Mapping[str, Counts]

    @property
    def strata_pass(self) -> bool:
        """Whether the figures by sex may leave."""
        return self.everybody.passes and all(counts.passes for counts in self.by_sex.values())


def truth(vcf: Path, samples: Path) -> dict[str, Truth]:
    """Return the truth of each rs id in ``vcf``, by cyvcf2."""
    sex = sample_sexes(samples)
    reader = cyvcf2.VCF(str(vcf))
    names: list[str] = list(reader.samples)
    found: dict[str, Truth] = {}
    for record in reader:
        alleles = {name: call[:2] for name, call in zip(names, record.genotypes, strict=True)}
        groups = {each: [alleles[name] for name in names if sex[name] == each] for each in SEXES}
        found[str(record.ID)] = Truth(
            _counts(alleles.values()), {each: _counts(group) for each, group in groups.items()}
        )
    reader.close()
    return found


def _counts(genotypes: Iterable[list[int]]) -> Counts:
    called = [pair for pair in genotypes if min(pair) >= 0]
    return Counts(
        people=len(called),
        ac=sum(sum(pair) for pair in called),
        carriers=sum(1 in pair for pair in called),
        others=sum(0 in pair for pair in called),
    )


def sample_sexes(samples: Path) -> dict[str, str]:
    """Return each sample's sex."""
    with samples.open(newline="") as table:
        return {row["sample"]: row["sex"] for row in csv.DictReader(table, delimiter="\t")}


def plink2_counts(vcf: Path, scratch: Path) -> dict[str, tuple[int, int]]:
    """Return AC and AN of each rs id, as ``plink2 --freq counts`` says."""
    out = scratch / vcf.parent.name
    command = ["plink2", "--vcf", str(vcf), "--freq", "counts", "--threads", "1", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    with out.with_suffix(".acount").open(newline="") as table:
        return {row["ID"]: (int(row["ALT_CTS"]), int(row["OBS_CT"])) for row in csv.DictReader(table, delimiter="\t")}
