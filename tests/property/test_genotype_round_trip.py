"""Property: what goes into a VCF is what is counted, whatever the genotypes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.contract.manifest import parse_manifest
from hansa.contract.summary import Summary, parse_summary
from node_agent.staging.importer import import_dataset
from node_agent.staging.samples import SEXES
from tests.support.genotypes import ALLELE_FREQUENCY, count_alleles, write_matrix

MANIFEST: Final = parse_manifest((ALLELE_FREQUENCY / "manifest.json").read_bytes())
MISSING: Final = 3
Matrix = npt.NDArray[np.int64]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Matrix, list[str]]:
    people, variants = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    sexes = draw(st.lists(st.sampled_from(SEXES), min_size=people, max_size=people))
    # Rare alleles and common ones, complete and patchy variants.
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    frequency = rng.random((variants, 1)) ** draw(st.integers(1, 6))
    genotypes = (rng.random((2, variants, people)) < frequency).sum(axis=0)
    return np.where(rng.random((variants, people)) < rng.random((variants, 1)) ** 3, MISSING, genotypes), sexes


def _direct(calls: Matrix) -> dict[str, int]:
    called = calls[calls != MISSING]
    return {
        "people": len(called),
        "an": 2 * len(called),
        "ac": int(called.sum()),
        "carriers": int((called > 0).sum()),
        "others": int((called < 2).sum()),
    }


def _counted(folder: Path, parameters: dict[str, str]) -> Summary:
    content = count_alleles(folder / "snapshot", parameters, folder)
    return parse_summary(content, MANIFEST.summary, released_only=False)


def _cells(summary: Summary, label: str, stratum: str) -> dict[str, Any]:
    return {name: array.cells[label, stratum] for name, array in summary.arrays.items()}


@given(dataset=datasets(), data=st.data())
@settings(max_examples=25)
def test_what_was_written_is_what_is_counted(dataset: tuple[Matrix, list[str]], data: st.DataObject) -> None:
    genotypes, sexes = dataset
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_matrix(folder, genotypes, sexes)
        snapshot = import_dataset(files.vcf, files.samples, build=None, target=folder / "snapshot")
        first, last = sorted(data.draw(st.lists(st.integers(0, len(genotypes) - 1), min_size=2, max_size=2)))
        in_region = _counted(folder, {"region": f"1:{1000 + 10 * first}-{1000 + 10 * last}", "stratify": "sex"})
        by_name = _counted(folder, {"variants": f"rs{last + 1},1:{1000 + 10 * first}:A:C"})
    assert (snapshot.people, snapshot.variants) == (len(sexes), len(genotypes))
    labels = [f"1:{1000 + 10 * row}:A:C" for row in range(len(genotypes))]
    assert in_region.axes["variant"] == tuple(labels[first : last + 1])
    groups = {"all": np.ones(len(sexes), bool), **{sex: np.array(sexes) == sex for sex in SEXES}}
    for row in range(first, last + 1):
        for stratum in in_region.axes["stratum"]:
            assert _cells(in_region, labels[row], stratum) == _direct(genotypes[row, groups[stratum]])
    assert set(by_name.axes["variant"]) == {labels[first], labels[last]}
    for row in {first, last}:
        assert _cells(by_name, labels[row], "all") == _direct(genotypes[row])
        assert by_name.notes[labels[row]] == f"rs{row + 1}"
