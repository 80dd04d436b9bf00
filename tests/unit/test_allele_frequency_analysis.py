"""The shipped allele-frequency analysis: its manifest and its counts."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.contract.manifest import check_parameters, parse_manifest
from hansa.contract.summary import Summary, parse_summary
from hansa.sdk.bundle import load_bundle
from node_agent.staging.importer import import_dataset
from tests.support.genotypes import ALLELE_FREQUENCY, count_alleles, header, write_dataset, write_samples, write_vcf

EXPECTED: Final[dict[str, Any]] = json.loads((ALLELE_FREQUENCY / "tests" / "expected.json").read_text())
MANIFEST: Final = parse_manifest((ALLELE_FREQUENCY / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    people = EXPECTED["people"]
    vcf = write_vcf(folder, header(list(people)) + "\n".join(EXPECTED["records"]) + "\n")
    import_dataset(vcf, write_samples(folder, people), build=None, target=folder / "snapshot")
    return folder / "snapshot"


def _count(snapshot: Path, parameters: dict[str, str], folder: Path) -> Summary:
    checked = check_parameters(MANIFEST, parameters)
    return parse_summary(count_alleles(snapshot, checked, folder), MANIFEST.summary, released_only=False)


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: case["name"].replace(" ", "_"))
def test_the_counts_are_those_counted_by_hand(case: dict[str, Any], snapshot: Path, tmp_path: Path) -> None:
    summary = _count(snapshot, case["parameters"], tmp_path)
    labels = tuple(each["variant"] for each in case["variants"])
    assert summary.axes == {"variant": labels, "stratum": tuple(case["strata"])}
    assert summary.notes == {each["variant"]: each["rsid"] for each in case["variants"] if each["rsid"]}
    for each, stratum in itertools.product(case["variants"], case["strata"]):
        found = {name: array.cells[each["variant"], stratum] for name, array in summary.arrays.items()}
        assert found == each["counts"][stratum], (each["variant"], stratum)


def test_both_sexes_are_strata_also_where_nobody_is_of_one(tmp_path: Path) -> None:
    people = ["a", "b"]
    text = header(people) + "1\t1000\t.\tA\tC\t.\tPASS\t.\tGT\t0/1\t0/1\n"
    samples = write_samples(tmp_path, dict.fromkeys(people, "female"))
    import_dataset(write_vcf(tmp_path, text), samples, build=None, target=tmp_path / "snapshot")
    summary = _count(tmp_path / "snapshot", {"variants": "1:1000:A:C", "stratify": "sex"}, tmp_path)
    assert summary.axes["stratum"] == ("all", "female", "male")
    assert [summary.arrays["people"].cells["1:1000:A:C", stratum] for stratum in summary.axes["stratum"]] == [2, 2, 0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, Reason.PARAMETER_MISSING),
        ({"variants": "rs1", "region": "1:1-2"}, Reason.PARAMETER_MISSING),
        ({"variants": "rs1", "stratify": "age"}, Reason.PARAMETER_INVALID),
        ({"variants": "X:1:A:C"}, Reason.PARAMETER_INVALID),
        ({"region": "1:2-1"}, Reason.PARAMETER_INVALID),
        ({"variants": "rs1", "samples": "all"}, Reason.PARAMETER_UNKNOWN),
    ],
)
def test_parameters_that_the_manifest_does_not_allow_are_refused(given: dict[str, str], reason: Reason) -> None:
    with pytest.raises(HansaError) as refusal:
        check_parameters(MANIFEST, given)
    assert refusal.value.reason is reason


def test_the_figures_that_serve_the_check_never_leave() -> None:
    released = {name for name, array in MANIFEST.summary.arrays.items() if array.released}
    assert released == {"people", "an", "ac"}
    assert set(MANIFEST.summary.arrays) - released == {"carriers", "others"}


def test_the_analysis_is_a_bundle_and_its_digest_does_not_cover_its_tests(tmp_path: Path) -> None:
    shutil.copytree(ALLELE_FREQUENCY, tmp_path / "copy", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    shipped, copied = load_bundle(ALLELE_FREQUENCY), load_bundle(tmp_path / "copy")
    assert shipped.digest == copied.digest
    assert (ALLELE_FREQUENCY / shipped.manifest.snakefile).is_file()


def test_the_script_runs_with_numpy_and_pgenlib_alone(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, ["1\t1000\t.\tA\tC\t.\tPASS\t.\tGT\t0/0\t0/1\t1/1\t./."])
    import_dataset(data.vcf, data.samples, build=None, target=tmp_path / "snapshot")
    (tmp_path / "params.json").write_text('{"variants": "1:1000:A:C"}')
    program = (
        "import runpy, sys\n"
        "script, *sys.argv = sys.argv[1:]\n"
        "sys.argv.insert(0, script)\n"
        "runpy.run_path(script, run_name='__main__')\n"
        "tops = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(*sorted(tops & {'hansa', 'node_agent', 'pandas', 'pydantic', 'snakemake', 'cyvcf2'}))\n"
    )
    script = ALLELE_FREQUENCY / "scripts" / "count_alleles.py"
    arguments = ["--data", str(tmp_path / "snapshot"), "--parameters", str(tmp_path / "params.json")]
    command = [sys.executable, "-I", "-c", program, str(script), *arguments, "--summary", str(tmp_path / "summary")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == []
    assert (tmp_path / "summary").is_file()
