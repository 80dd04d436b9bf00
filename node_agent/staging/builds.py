"""Genome builds, told apart by the lengths of their autosomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.variants import AUTOSOMES

_GRCH37: Final = (
    249250621, 243199373, 198022430, 191154276, 180915260, 171115067, 159138663, 146364022, 141213431, 135534747,
    135006516, 133851895, 115169878, 107349540, 102531392, 90354753, 81195210, 78077248, 59128983, 63025520,
    48129895, 51304566,
)  # fmt: skip
_GRCH38: Final = (
    248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717, 133797422,
    135086622, 133275309, 114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616, 64444167,
    46709983, 50818468,
)  # fmt: skip

BUILDS: Final[Mapping[str, Mapping[str, int]]] = {
    "GRCh37": dict(zip(AUTOSOMES, _GRCH37, strict=True)),
    "GRCh38": dict(zip(AUTOSOMES, _GRCH38, strict=True)),
}
_ALIASES: Final = {"grch37": "GRCh37", "hg19": "GRCh37", "b37": "GRCh37", "grch38": "GRCh38", "hg38": "GRCh38"}


def build_named(name: str) -> str:
    """Return the build that ``name`` (``--build``) means.

    Raises:
        HansaError: ``BUILD_UNKNOWN``.
    """
    try:
        return _ALIASES[name.lower()]
    except KeyError:
        raise HansaError(
            Reason.BUILD_UNKNOWN, f"--build is one of {', '.join(BUILDS)}, not {name[:20]!a}.", field="build"
        ) from None


def build_of(lengths: Mapping[str, int], claimed: str | None) -> str:
    """Return the build of a file.

    Lengths that are no build's (a simulation's) tell nothing: then the claim
    stands. Lengths that are a build's win over silence, never over a claim.

    Args:
        lengths: bases by autosome, ``1`` to ``22``, as the file's header has them.
        claimed: what ``--build`` says, if it was given.

    Raises:
        HansaError: ``BUILD_MISMATCH``; the lengths are of several builds, or of
            another than is claimed. ``BUILD_UNKNOWN``; nothing tells it.
    """
    wanted = None if claimed is None else build_named(claimed)
    found = {_build_with(contig, length) for contig, length in lengths.items()}
    known = found - {""}
    if len(found) > 1 and known:
        raise HansaError(
            Reason.BUILD_MISMATCH, "The VCF's header mixes the contig lengths of different genome builds.", field="vcf"
        )
    if known and wanted is not None and known != {wanted}:
        raise HansaError(
            Reason.BUILD_MISMATCH,
            f"The VCF's contig lengths are those of {known.pop()}, but --build says {wanted}.",
            field="build",
        )
    build = wanted or next(iter(known), None)
    if build is None:
        raise HansaError(
            Reason.BUILD_UNKNOWN,
            f"The VCF's contigs do not tell its build; pass --build {' or --build '.join(BUILDS)}.",
            field="build",
        )
    return build


def _build_with(contig: str, length: int) -> str:
    return next((build for build, table in BUILDS.items() if table[contig] == length), "")
