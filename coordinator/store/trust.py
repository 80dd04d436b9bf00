"""The trust repository's mirror. Works inside the caller's transaction and never commits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from coordinator.store.trust_models import TrustMetadataRow, TrustStateRow, TrustTargetRow
from hansa.trust.files import METADATA_NAME, TIMESTAMP, metadata_name

_ONLY = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustState:
    """Which version is in force. ``directory_sha256`` (hex) names the target with the directory."""

    pinned_root: int
    root_version: int
    targets_version: int
    snapshot_version: int
    timestamp_version: int
    directory_version: int
    directory_sha256: str
    in_force_at: datetime

    def version_of(self, role: str) -> int:
        """Return the version of ``role`` that is in force; 0 for a role that there is not."""
        return {
            "root": self.root_version,
            "targets": self.targets_version,
            "snapshot": self.snapshot_version,
            "timestamp": self.timestamp_version,
        }.get(role, 0)


class TrustRepository:
    """Reads the mirror, and puts a verified version in force."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def state(self) -> TrustState | None:
        """Return what is in force; None before the first version."""
        row = self._session.get(TrustStateRow, _ONLY)
        if row is None:
            return None
        return TrustState(
            pinned_root=row.pinned_root,
            root_version=row.root_version,
            targets_version=row.targets_version,
            snapshot_version=row.snapshot_version,
            timestamp_version=row.timestamp_version,
            directory_version=row.directory_version,
            directory_sha256=row.directory_sha256,
            in_force_at=row.in_force_at,
        )

    def metadata(self, role: str, version: int) -> bytes | None:
        """Return the metadata of ``role`` in this version, if it is here."""
        row = self._session.get(TrustMetadataRow, (role, version))
        return None if row is None else row.content

    def root_with_digest(self, sha256: str) -> bytes | None:
        """Return the root metadata, of any version, with this SHA-256 (hex)."""
        query = select(TrustMetadataRow.content)
        return self._session.scalar(
            query.where(TrustMetadataRow.sha256 == sha256, TrustMetadataRow.role == "root").limit(1)
        )

    def all_metadata(self) -> dict[str, bytes]:
        """Return all metadata by the names of a mirror."""
        rows = self._session.scalars(select(TrustMetadataRow)).all()
        return {metadata_name(row.role, row.version): row.content for row in rows}

    def target(self, sha256: str) -> bytes | None:
        """Return the target with this SHA-256 (hex), if it is here."""
        row = self._session.get(TrustTargetRow, sha256)
        return None if row is None else row.content

    def target_digests(self) -> frozenset[str]:
        """Return the SHA-256 (hex) of every target that is here."""
        return frozenset(self._session.scalars(select(TrustTargetRow.sha256)))

    def put(self, state: TrustState, metadata: Mapping[str, bytes], targets: Mapping[str, bytes]) -> None:
        """Make ``state`` the one in force.

        Args:
            state: as verified.
            metadata: files by the names of a mirror; what is here stays, but
                for the timestamp, of which there is one.
            targets: contents by SHA-256 (hex); what is here stays.
        """
        self._put_metadata(state, metadata)
        known = self.target_digests()
        self._session.add_all(
            TrustTargetRow(sha256=sha256, content=content) for sha256, content in targets.items() if sha256 not in known
        )
        row = self._session.get(TrustStateRow, _ONLY)
        if row is None:
            row = TrustStateRow(id=_ONLY)
            self._session.add(row)
        row.pinned_root = state.pinned_root
        row.root_version, row.targets_version = state.root_version, state.targets_version
        row.snapshot_version, row.timestamp_version = state.snapshot_version, state.timestamp_version
        row.directory_version, row.directory_sha256 = state.directory_version, state.directory_sha256
        row.in_force_at = state.in_force_at
        self._session.flush()

    def _put_metadata(self, state: TrustState, metadata: Mapping[str, bytes]) -> None:
        self._session.execute(delete(TrustMetadataRow).where(TrustMetadataRow.role == TIMESTAMP))
        self._session.expire_all()
        for name, content in metadata.items():
            match = METADATA_NAME.fullmatch(name)
            if match is None:
                continue
            role = match["role"] or TIMESTAMP
            version = state.timestamp_version if role == TIMESTAMP else int(match["version"])
            row = self._session.get(TrustMetadataRow, (role, version))
            if row is None:
                row = TrustMetadataRow(role=role, version=version)
                self._session.add(row)
            # A snapshot's number may come again, under another key; root and targets never change.
            row.sha256, row.content = hashlib.sha256(content).hexdigest(), content
        self._session.flush()
