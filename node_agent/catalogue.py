"""The analyses installed at this node.

A bundle is a folder with ``manifest.json``. Its digest covers every file but
``tests/`` and ``__pycache__``; only what is installed here, under the digest
that the job names, is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hansa.contract.digests import bundle_digest
from hansa.contract.errors import HansaError, Reason
from hansa.contract.manifest import Manifest, parse_manifest

_log = structlog.get_logger(__name__)

MANIFEST: Final = "manifest.json"
_BUNDLE_BYTES: Final = 16 << 20


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
        for place in sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")):
            try:
                analysis = read_bundle(place)
            except HansaError as error:
                _log.error("analysis_not_usable", folder=str(place), detail=str(error))
                continue
            if found.setdefault(analysis.key, analysis).digest != analysis.digest:
                _log.error("analysis_shadowed", folder=str(place), analysis=analysis.key)
    return found


def read_bundle(folder: Path) -> InstalledAnalysis:
    """Return the analysis in ``folder``.

    Raises:
        HansaError: ``MANIFEST_INVALID``; the manifest is wrong, or the bundle
            holds a link or is too large to be a bundle.
    """
    try:
        files = bundle_files(folder)
    except OSError as error:
        raise HansaError(Reason.MANIFEST_INVALID, "The bundle cannot be read.", log=str(error)) from error
    manifest = parse_manifest(files.get(MANIFEST, b""))
    if manifest.snakefile not in files:
        raise HansaError(Reason.MANIFEST_INVALID, f"The bundle has no {manifest.snakefile}.", field="snakefile")
    return InstalledAnalysis(manifest, bundle_digest(files), folder)


def bundle_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the bundle's files by relative path.

    Raises:
        HansaError: ``MANIFEST_INVALID``; a link, whose target the digest
            would not pin, or more than 16 MiB.
        OSError: a file cannot be read.
    """
    files: dict[str, bytes] = {}
    size = 0
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] == "tests" or "__pycache__" in parts:
            continue
        if path.is_symlink():
            raise HansaError(Reason.MANIFEST_INVALID, "The bundle holds a link.", field="/".join(parts))
        if path.is_file():
            size += path.stat().st_size
            if size > _BUNDLE_BYTES:
                raise HansaError(Reason.MANIFEST_INVALID, f"The bundle is over {_BUNDLE_BYTES} bytes.")
            files["/".join(parts)] = path.read_bytes()
    return files
