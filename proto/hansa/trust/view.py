"""What one verified state of the trust repository says. Pure: made by who has verified it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from hansa.contract.directory import Directory
from hansa.contract.job import AnalysisRef
from hansa.contract.review import Count


@dataclass(frozen=True, slots=True)
class TrustedAnalysis:
    """An analysis bundle of the repository, with what its votes come to.

    ``files`` has the SHA-256 (hex) of each file by its path in the bundle.
    """

    name: str
    version: str
    digest: str
    manifest: bytes
    files: Mapping[str, str]
    count: Count

    @property
    def ref(self) -> AnalysisRef:
        """The analysis as jobs, votes and approvals name it."""
        return AnalysisRef(name=self.name, version=self.version, digest=self.digest)

    @property
    def key(self) -> str:
        """``name@version``, as policies write it."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustView:
    """A consistent, verified state. ``expires`` is the earliest expiry of its four roles."""

    root_version: int
    targets_version: int
    snapshot_version: int
    timestamp_version: int
    expires: datetime
    directory: Directory
    # By ``name@version``; also those that have too few votes.
    analyses: Mapping[str, TrustedAnalysis] = field(default_factory=dict)
    # SHA-256 (hex) of the directory's bytes.
    directory_sha256: str = ""
    # SHA-256 (hex) of each target by its path.
    targets: Mapping[str, str] = field(default_factory=dict)
    # Length in bytes of each target by its path.
    sizes: Mapping[str, int] = field(default_factory=dict)
    # The verified metadata by its name in the mirror: the roots from the pinned
    # one on, and the snapshot, targets and timestamp that are in force.
    metadata: Mapping[str, bytes] = field(default_factory=dict)
