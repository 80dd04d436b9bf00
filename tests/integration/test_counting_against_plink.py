"""A snapshot and its counts, judged by plink2, bcftools and Snakemake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from hansa.contract.manifest import parse_manifest
from hansa.contract.summary import parse_summary
from node_agent.staging.importer import import_dataset
from tests.support.genotypes import (
    ALLELE_FREQUENCY,
    Dataset,
    count_alleles,
    header,
    program,
    record,
    write_samples,
    write_vcf,
)

MANIFEST: Final = parse_manifest((ALLELE_FREQUENCY / "manifest.json").read_bytes())
PEOPLE: Final = 61
CHROMOSOMES: Final = ("1", "22", "2")  # not in numerical order, as real files are
_RUN: Final = """
import sys
from pathlib import Path
from snakemake.api import ConfigSettings, OutputSettings, ResourceSettings, SnakemakeApi
bundle, data, work = sys.argv[1:]
with SnakemakeApi(OutputSettings()) as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(cores=1),
        config_settings=ConfigSettings(config={"bundle": bundle, "data": data, "work": work}),
        snakefile=Path(bundle) / "Snakefile",
        workdir=Path(work),
    )
    workflow.dag().execute_workflow(executor="local")
"""

Counts = dict[tuple[str, str], tuple[int, int]]


def _lines() -> Iterator[str]:
    rng = np.random.default_rng(20)
    for chrom in CHROMOSOMES:
        for pos in range(1000, 1000 + 3 * 150, 3):
            alts = ["C", "G", "T", "AC"][: rng.integers(1, 5)]
            if rng.random() < 0.1:
                alts.append("<DEL>")
            alleles = rng.integers(0, len(alts) + 1, (PEOPLE, 2)).astype(str)
            alleles[rng.random(PEOPLE) < rng.random() ** 4] = "."
            alleles[rng.random(PEOPLE) < 0.02, 0] = "."  # half calls
            calls = ["/|"[int(rng.integers(2))].join(pair) for pair in alleles]
            yield record(f"{chrom}:{pos}", "A", ",".join(alts), calls, name=f"rs{rng.integers(1, 10**6)}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("plink")
    people = {f"person{number}": ("female", "male", "unknown")[number % 5 // 2] for number in range(PEOPLE)}
    text = header(list(people)) + "".join(f"{line}\n" for line in _lines())
    return Dataset(write_vcf(folder, text), write_samples(folder, people))


@pytest.fixture(scope="module")
def snapshot(data: Dataset) -> Path:
    target = data.vcf.parent / "snapshot"
    import_dataset(data.vcf, data.samples, build=None, target=target)
    return target


def _ours(snapshot: Path, folder: Path) -> Counts:
    found: Counts = {}
    for chrom in CHROMOSOMES:
        content = count_alleles(snapshot, {"region": f"{chrom}:1-10000", "stratify": "sex"}, folder)
        summary = parse_summary(content, MANIFEST.summary, released_only=False)
        ac, an = summary.arrays["ac"].cells, summary.arrays["an"].cells
        found.update({(label, stratum): (int(ac[label, stratum]), int(an[label, stratum])) for label, stratum in ac})
    return found


def _plinks(arguments: list[str], folder: Path) -> Counts:
    """Return plink2's counts in all, of women, of men."""
    found: Counts = {}
    for stratum, flags in {"all": [], "female": ["--keep-females"], "male": ["--keep-males"]}.items():
        out = folder / stratum
        columns = ["--freq", "counts", "cols=chrom,pos,ref,alt,altfreq,nobs"]
        command = [program("plink2"), *arguments, *flags, *columns, "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        for line in out.with_suffix(".acount").read_text().splitlines()[1:]:
            chrom, pos, _, ref, alt, ac, an = line.split("\t")
            found[f"{chrom}:{pos}:{ref}:{alt}", stratum] = (int(ac), int(an))
    return found


def _without_unknown(counts: Counts) -> Counts:
    return {key: value for key, value in counts.items() if key[1] != "unknown"}


def test_plink2_reads_a_snapshot_and_counts_the_same_in_every_cell(snapshot: Path, tmp_path: Path) -> None:
    plinks = _plinks(["--pfile", str(snapshot / "genotypes")], tmp_path)
    assert len(plinks) > 1000
    assert _without_unknown(_ours(snapshot, tmp_path)) == plinks


def test_counts_are_those_of_the_vcf_as_bcftools_splits_and_plink2_counts_it(
    data: Dataset, snapshot: Path, tmp_path: Path
) -> None:
    split, kept = tmp_path / "split.vcf", tmp_path / "kept.vcf"
    subprocess.run(
        [program("bcftools"), "norm", "-m-any", "-o", str(split), str(data.vcf)], check=True, capture_output=True
    )
    subprocess.run([program("bcftools"), "view", "-e", 'ALT~"<"', "-o", str(kept), str(split)], check=True)
    sexes = [line.split("\t")[:2] for line in data.samples.read_text().splitlines()[1:]]
    code = {"male": "1", "female": "2", "unknown": "NA"}
    (tmp_path / "sex").write_text("#IID\tSEX\n" + "".join(f"{person}\t{code[sex]}\n" for person, sex in sexes))
    arguments = ["--vcf", str(kept), "--vcf-half-call", "missing", "--update-sex", str(tmp_path / "sex")]
    arguments += ["--sort-vars", "--make-pgen", "--out", str(tmp_path / "whole")]
    subprocess.run([program("plink2"), *arguments], check=True, capture_output=True)
    plinks = _plinks(["--pfile", str(tmp_path / "whole")], tmp_path)
    assert _without_unknown(_ours(snapshot, tmp_path)) == plinks


@pytest.mark.slow
def test_snakemake_runs_the_bundle_and_writes_the_one_summary(snapshot: Path, tmp_path: Path) -> None:
    work, expected = tmp_path / "work", tmp_path / "expected"
    work.mkdir()
    expected.mkdir()
    parameters = {"region": "22:1000-1200", "stratify": "sex"}
    (work / "params.json").write_text(json.dumps(parameters))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", _RUN, str(ALLELE_FREQUENCY), str(snapshot), str(work)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert ended.returncode == 0, ended.stderr
    assert (work / "summary.json").read_bytes() == count_alleles(snapshot, parameters, expected)
