"""Which genome build a dataset is of."""

from __future__ import annotations

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.contract.variants import AUTOSOMES
from node_agent.staging.builds import BUILDS, build_of
from tests.support.genotypes import GRCH37_CONTIGS, GRCH38_CONTIGS


def test_the_lengths_of_the_contigs_tell_the_build() -> None:
    assert build_of(GRCH37_CONTIGS, None) == "GRCh37"
    assert build_of(GRCH38_CONTIGS, None) == "GRCh38"
    assert build_of(GRCH38_CONTIGS, "hg38") == "GRCh38"


def test_a_claim_stands_where_the_lengths_tell_nothing() -> None:
    assert build_of({}, "GRCh37") == "GRCh37"
    assert build_of({"1": 1_000_000}, "GRCh38") == "GRCh38"


@pytest.mark.parametrize(
    ("lengths", "claimed", "reason"),
    [
        ({}, None, Reason.BUILD_UNKNOWN),
        ({"1": 1_000_000}, None, Reason.BUILD_UNKNOWN),
        ({}, "T2T", Reason.BUILD_UNKNOWN),
        (GRCH37_CONTIGS, "GRCh38", Reason.BUILD_MISMATCH),
        ({"1": GRCH37_CONTIGS["1"], "2": GRCH38_CONTIGS["2"]}, None, Reason.BUILD_MISMATCH),
        ({"1": GRCH37_CONTIGS["1"], "2": GRCH38_CONTIGS["2"]}, "GRCh37", Reason.BUILD_MISMATCH),
        ({"1": GRCH37_CONTIGS["1"], "2": 1_000_000}, None, Reason.BUILD_MISMATCH),
    ],
)
def test_a_build_that_is_not_certain_is_refused(lengths: dict[str, int], claimed: str | None, reason: Reason) -> None:
    with pytest.raises(HansaError) as refusal:
        build_of(lengths, claimed)
    assert refusal.value.reason is reason


def test_every_build_has_its_own_length_of_every_autosome() -> None:
    for contig in AUTOSOMES:
        lengths = [table[contig] for table in BUILDS.values()]
        assert len(set(lengths)) == len(lengths)
