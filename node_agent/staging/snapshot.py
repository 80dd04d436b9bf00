"""Dataset snapshots: one immutable version of a dataset, named by its digest.

A snapshot is a folder: ``genotypes.pgen``, ``.pvar`` and ``.psam`` (which
plink2 reads), an index of the variants, and ``snapshot.json``, which lists the
others with their hashes. The snapshot's digest is that of ``snapshot.json``,
hence of everything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from hansa.contract.digests import canonical, digest
from hansa.contract.errors import HansaError, Reason

SNAPSHOT_FILE: Final = "snapshot.json"
PGEN: Final = "genotypes.pgen"
PVAR: Final = "genotypes.pvar"
PSAM: Final = "genotypes.psam"
# The index of the variants: numpy arrays, row by row of the .pvar.
INDEX_CHROM: Final = "index.chrom.npy"
INDEX_POS: Final = "index.pos.npy"
INDEX_OFFSET: Final = "index.offset.npy"
INDEX_RS: Final = "index.rs.npy"
INDEX_RS_ROW: Final = "index.rs_row.npy"
SNAPSHOT_FILES: Final = (
    PGEN, PVAR, PSAM, INDEX_CHROM, INDEX_POS, INDEX_OFFSET, INDEX_RS, INDEX_RS_ROW
)  # fmt: skip

_JSON_BYTES: Final = 1 << 20
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a snapshot; nothing in here tells of one person.

    ``people_by_sex`` counts ``female``, ``male`` and ``unknown``; ``skipped``
    counts what the import left out or changed, by cause.
    """

    digest: str
    build: str
    people: int
    people_by_sex: dict[str, int]
    variants: int
    skipped: dict[str, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _File(_Strict):
    path: Literal[SNAPSHOT_FILES]  # type: ignore[valid-type]
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    size: _Count


class _BySex(_Strict):
    female: _Count
    male: _Count
    unknown: _Count


class SnapshotRecord(_Strict):
    """The content of ``snapshot.json``."""

    v: Literal[1] = 1
    build: Literal["GRCh37", "GRCh38"]
    people: Annotated[int, Field(ge=1)]
    people_by_sex: _BySex
    variants: Annotated[int, Field(ge=1)]
    skipped: Mapping[Annotated[str, StringConstraints(pattern="^[a-z_]{1,32}$")], _Count]
    files: Annotated[list[_File], Field(min_length=len(SNAPSHOT_FILES), max_length=len(SNAPSHOT_FILES))]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if [file.path for file in self.files] != sorted(SNAPSHOT_FILES):
            raise ValueError("files are not those of a snapshot, in order")
        sexes = self.people_by_sex
        if sexes.female + sexes.male + sexes.unknown != self.people:
            raise ValueError("people by sex do not add up")
        return self


def listing(folder: Path) -> list[dict[str, object]]:
    """Return the snapshot's files with their sizes and hashes, as in ``snapshot.json``.

    Raises:
        OSError: one cannot be read.
    """
    return [_listed(folder, name) for name in sorted(SNAPSHOT_FILES)]


def _listed(folder: Path, name: str) -> dict[str, object]:
    with (folder / name).open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        return {"path": name, "sha256": sha256, "size": os.fstat(content.fileno()).st_size}


def record_bytes(content: Mapping[str, object]) -> bytes:
    """Return ``snapshot.json`` for ``content``: canonical, so that equal snapshots are equal bytes."""
    return canonical({"v": 1, **content})


def read_snapshot(folder: Path) -> Snapshot:
    """Return the snapshot in ``folder`` as its record describes it.

    Raises:
        HansaError: ``DATASET_INVALID``; there is no record, or it is not valid.
    """
    return _parse(folder)[0]


def is_in_place(folder: Path, digest_: str) -> bool:
    """Say whether the snapshot ``digest_`` lies in ``folder``, all files at their sizes.

    Quick, unlike ``verify_snapshot``: it finds a lost mount or a cut file, not a flipped bit.
    """
    try:
        snapshot, files = _parse(folder)
        sizes = [(folder / str(one["path"])).stat().st_size == one["size"] for one in files]
    except (HansaError, OSError):
        return False
    return snapshot.digest == digest_ and all(sizes)


def verify_snapshot(folder: Path) -> Snapshot:
    """Return the snapshot in ``folder`` after reading all of it.

    Raises:
        HansaError: ``DATASET_INVALID``; as ``read_snapshot``, or a file is not
            the one the record was made of, or a file is there that is none of it.
    """
    snapshot, files = _parse(folder)
    try:
        strangers = {path.name for path in folder.iterdir()} - {*SNAPSHOT_FILES, SNAPSHOT_FILE}
        links = [name for name in SNAPSHOT_FILES if not (folder / name).is_file() or (folder / name).is_symlink()]
        changed = [] if strangers or links else [one["path"] for one in listing(folder) if one not in files]
    except OSError as error:
        raise _invalid(f"cannot be read: {type(error).__name__}") from error
    if strangers or links or changed:
        raise _invalid(f"not as recorded: strangers={len(strangers)} links={links} changed={changed}")
    return snapshot


def _invalid(log: str) -> HansaError:
    return HansaError(
        Reason.DATASET_INVALID, "The dataset's snapshot is damaged; import it again.", field="snapshot", log=log
    )


def _parse(folder: Path) -> tuple[Snapshot, Sequence[Mapping[str, object]]]:
    try:
        path = folder / SNAPSHOT_FILE
        if path.is_symlink() or path.stat().st_size > _JSON_BYTES:
            raise _invalid("snapshot.json is a link or too large")
        data = path.read_bytes()
        record = SnapshotRecord.model_validate_json(data)
    except OSError as error:
        raise _invalid(f"cannot be read: {type(error).__name__}") from error
    except ValidationError as error:
        raise _invalid(str(error.errors(include_url=False, include_input=False)[:1])) from error
    snapshot = Snapshot(
        digest=digest(data),
        build=record.build,
        people=record.people,
        people_by_sex=record.people_by_sex.model_dump(),
        variants=record.variants,
        skipped=dict(record.skipped),
    )
    return snapshot, [file.model_dump() for file in record.files]
