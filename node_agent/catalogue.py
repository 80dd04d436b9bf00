"""The analyses installed at this node.

Only what is installed here, under the digest that the job names, is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from hansa.contract.errors import HansaError
from hansa.contract.manifest import Manifest
from hansa.sdk.bundle import MANIFEST_FILE, load_bundle

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InstalledAnalysis:
    """An analysis bundle on this node's disk."""

    manifest: Manifest
    digest: str
    folder: Path

    @property
    def key(self) -> str:
        """``name@version``, as policies write it."""
        return f"{self.manifest.name}@{self.manifest.version}"


def shipped_analyses() -> Path:
    """Return the folder of the analyses that Hansa ships."""
    return Path(__file__).parent / "analyses"


def analysis_folders(analyses_dir: Path | None) -> Sequence[Path]:
    """Return the folders to look in: the shipped one, then the operator's own."""
    return [shipped_analyses(), *([] if analyses_dir is None else [analyses_dir])]


def installed_analyses(folders: Sequence[Path]) -> Mapping[str, InstalledAnalysis]:
    """Return the analyses in ``folders`` by ``name@version``.

    A bundle that cannot be used is logged and left out, so that one broken
    folder does not stop the node. Of two under one key, the first is kept.
    """
    found: dict[str, InstalledAnalysis] = {}
    for folder in folders:
        for place in sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}")):
            try:
                bundle = load_bundle(place)
            except HansaError as error:
                _log.error("analysis_not_usable", folder=str(place), detail=str(error))
                continue
            analysis = InstalledAnalysis(bundle.manifest, bundle.digest, place)
            if found.setdefault(analysis.key, analysis).digest != analysis.digest:
                _log.error("analysis_shadowed", folder=str(place), analysis=analysis.key)
    return found
