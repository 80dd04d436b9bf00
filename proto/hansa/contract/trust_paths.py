"""Where things lie in the trust repository (the paths of its targets)."""

from __future__ import annotations

import re
from typing import Final

from hansa.contract.ids import ANALYSIS_NAME, ANALYSIS_VERSION, PERSON_NAME

DIRECTORY: Final = "directory.json"
_ANALYSIS: Final = re.compile(
    rf"analyses/(?P<name>{ANALYSIS_NAME.pattern})/(?P<version>{ANALYSIS_VERSION.pattern})/bundle\.json"
)


def bundle_path(name: str, version: str) -> str:
    """Return the target that lists a bundle's files: its SHA-256 is the bundle's digest."""
    return f"analyses/{name}/{version}/bundle.json"


def authorship_path(name: str, version: str) -> str:
    """Return the target with the author's envelope."""
    return f"analyses/{name}/{version}/author.dsse.json"


def vote_path(name: str, version: str, reviewer: str) -> str:
    """Return the target with a reviewer's vote."""
    return f"analyses/{name}/{version}/votes/{reviewer}.dsse.json"


def votes_of(name: str, version: str) -> re.Pattern[str]:
    """Return what matches the targets of the votes on one analysis."""
    stem = re.escape(f"analyses/{name}/{version}/votes/")
    return re.compile(rf"{stem}{PERSON_NAME.pattern}\.dsse\.json")


def blob_path(sha256_hex: str) -> str:
    """Return the target with the content of one file of a bundle."""
    return f"blobs/{sha256_hex}"


def analysis_of(path: str) -> tuple[str, str] | None:
    """Return name and version of the analysis whose bundle lies at ``path``; None for other targets."""
    match = _ANALYSIS.fullmatch(path)
    return None if match is None else (match["name"], match["version"])
