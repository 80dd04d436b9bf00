"""Builders of small VCFs, good and bad, and of samples files.

The files are compressed and indexed by bgzip and tabix, as a data holder's are,
but where the point is that they are not.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tests.support.source_tree import ROOT

ALLELE_FREQUENCY: Final = ROOT / "node_agent" / "analyses" / "allele_frequency"
GRCH37_CONTIGS: Final = {"1": 249250621, "2": 243199373, "22": 51304566}
GRCH38_CONTIGS: Final = {"1": 248956422, "2": 242193529, "22": 50818468}
PEOPLE: Final = ("anna", "bela", "cem", "dora")
SEXES: Final = ("female", "male", "male", "unknown")
_GENOTYPES: Final = np.array(["0/0", "0/1", "1/1", "./."])


def program(name: str) -> str:
    """Return the path of a program, or fail with the command that installs it."""
    found = shutil.which(name)
    if found is None:
        raise AssertionError(f"{name} is missing; install it with: make system")
    return found


@dataclass(frozen=True, slots=True)
class Dataset:
    """A VCF and its samples file."""

    vcf: Path
    samples: Path


def record(place: str, ref: str, alt: str, genotypes: Sequence[str], *, name: str = ".", form: str = "GT") -> str:
    """Return one line of a VCF; ``place`` is ``chrom:pos``."""
    chrom, pos = place.split(":")
    return "\t".join([chrom, pos, name, ref, alt, ".", "PASS", ".", form, *genotypes])


def header(people: Sequence[str] = PEOPLE, contigs: Mapping[str, int | None] = GRCH37_CONTIGS) -> str:
    """Return a VCF's header; a contig without a length has None."""
    lines = ["##fileformat=VCFv4.2", '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">']
    for contig, length in contigs.items():
        lines.append(f"##contig=<ID={contig}" + (f",length={length}>" if length is not None else ">"))
    lines.append("\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *people]))
    return "\n".join(lines) + "\n"


def write_vcf(folder: Path, text: str, *, indexed: bool = True, name: str = "data") -> Path:
    """Return a compressed VCF with ``text`` in it.

    Args:
        folder: where it goes.
        text: header and records, which need not be valid.
        indexed: put an index beside it: tabix's, or where tabix refuses the
            records, an empty one (an import reads it, but takes nothing from it).
        name: of the file, without suffixes.
    """
    plain = folder / f"{name}.vcf"
    plain.write_text(text, encoding="utf-8")
    subprocess.run([program("bgzip"), "-f", str(plain)], check=True)
    vcf = folder / f"{name}.vcf.gz"
    if indexed:
        made = subprocess.run([program("tabix"), "-f", "-p", "vcf", str(vcf)], check=False, capture_output=True)
        if made.returncode:
            _write_empty_index(vcf)
    return vcf


def _write_empty_index(vcf: Path) -> None:
    index = vcf.with_name(vcf.name + ".tbi")
    packed = subprocess.run([program("bgzip"), "-c"], input=b"TBI\1" + bytes(32), check=True, capture_output=True)
    index.write_bytes(packed.stdout)


def write_samples(folder: Path, people: Mapping[str, str]) -> Path:
    """Return a samples file with the sex of each of ``people``."""
    path = folder / "samples.tsv"
    lines = [f"{person}\t{sex}\tXXX" for person, sex in people.items()]
    path.write_text("\n".join(["sample\tsex\tpopulation", *lines]) + "\n", encoding="utf-8")
    return path


def write_dataset(folder: Path, records: Sequence[str], *, indexed: bool = True) -> Dataset:
    """Return a dataset of the four ``PEOPLE`` with ``records``."""
    text = header() + "".join(f"{line}\n" for line in records)
    samples = write_samples(folder, dict(zip(PEOPLE, SEXES, strict=True)))
    return Dataset(write_vcf(folder, text, indexed=indexed), samples)


def write_matrix(folder: Path, genotypes: npt.NDArray[np.integer[Any]], sexes: Sequence[str]) -> Dataset:
    """Return a dataset of a matrix.

    Args:
        folder: where it goes.
        genotypes: (variants, people); 0, 1, 2 copies, 3 for no genotype. Variant
            ``i`` is ``1:{1000 + 10 i}:A:C`` with the rs id ``rs{i + 1}``.
        sexes: one of each person.
    """
    people = [f"person{number}" for number in range(len(sexes))]
    lines = [
        record(f"1:{1000 + 10 * row}", "A", "C", _GENOTYPES[calls].tolist(), name=f"rs{row + 1}")
        for row, calls in enumerate(genotypes)
    ]
    samples = write_samples(folder, dict(zip(people, sexes, strict=True)))
    return Dataset(write_vcf(folder, header(people) + "".join(f"{line}\n" for line in lines)), samples)


def counting_script() -> ModuleType:
    """Return the shipped analysis' script as a module; it is no package's, for it must stand alone."""
    spec = importlib.util.spec_from_file_location("count_alleles", ALLELE_FREQUENCY / "scripts" / "count_alleles.py")
    if spec is None or spec.loader is None:
        raise AssertionError("the analysis has no script")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_alleles(snapshot: Path, parameters: Mapping[str, str], folder: Path) -> bytes:
    """Return the summary that the shipped analysis' script writes, outside of any sandbox."""
    given, summary = folder / "params.json", folder / "summary.json"
    given.write_text(json.dumps(dict(parameters)), encoding="utf-8")
    counting_script().main(["--data", str(snapshot), "--parameters", str(given), "--summary", str(summary)])
    return summary.read_bytes()
