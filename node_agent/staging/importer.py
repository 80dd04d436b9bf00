"""Import: from the files that a data holder has to a dataset snapshot.

Everything is checked before anything is kept: the snapshot's folder appears
whole, or is removed again. Texts for people never name a person of the dataset.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Final

import structlog

from hansa.contract.errors import HansaError, Reason
from node_agent.staging.builds import build_of
from node_agent.staging.records import VcfRecords
from node_agent.staging.samples import SEXES, read_samples, sexes_in_order
from node_agent.staging.snapshot import SNAPSHOT_FILE, Snapshot, listing, read_snapshot, record_bytes
from node_agent.staging.snapshot_writer import SnapshotWriter
from node_agent.staging.vcf_file import check_vcf_file

_log = structlog.get_logger(__name__)

# The sandbox's user is another than ours and must read what is bound into it;
# the state folder above keeps everybody else out.
_FILE_MODE: Final = 0o444
_FOLDER_MODE: Final = 0o755


def import_dataset(vcf: Path, samples: Path, *, build: str | None, target: Path) -> Snapshot:
    """Return the snapshot made of ``vcf`` and ``samples`` in the new folder ``target``.

    The same input gives the same digest. On any error ``target`` is removed.

    Args:
        vcf: a VCF compressed with bgzip, with its ``.tbi`` or ``.csi`` beside it.
        samples: the samples file (``samples.read_samples``).
        build: the genome build, for files whose header does not tell it.
        target: does not exist yet; its parent does.

    Raises:
        HansaError: ``VCF_*``, ``SAMPLES_*``, ``BUILD_*``, ``DATASET_INVALID``
            (no variant that could be used), or ``FILE_INVALID``: ``target``
            cannot be written.
    """
    header = check_vcf_file(vcf)
    named = build_of(header.lengths, build)
    sexes = sexes_in_order(header.samples, read_samples(samples))
    try:
        target.mkdir(mode=_FOLDER_MODE)
    except OSError as error:
        raise _cannot_write(error) from error
    try:
        snapshot = _write(VcfRecords(vcf, header, named), sexes, named, target)
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise _cannot_write(error) from error
        raise
    _log.info("dataset_imported", snapshot=snapshot.digest, people=snapshot.people, variants=snapshot.variants)
    return snapshot


def _cannot_write(error: OSError) -> HansaError:
    return HansaError(
        Reason.FILE_INVALID,
        f"The snapshot cannot be written: {error.strerror or 'the disk is full or failing'}.",
        log=str(error),
    )


def _write(records: VcfRecords, sexes: tuple[str, ...], build: str, target: Path) -> Snapshot:
    writer = SnapshotWriter(target, sexes)
    try:
        for variant in records:
            writer.add(variant)
        if writer.variants == 0:
            raise HansaError(Reason.DATASET_INVALID, "The VCF holds no variant that can be used.", field="vcf")
        writer.finish()
    finally:
        writer.close()
    count = Counter(sexes)
    content = {
        "build": build,
        "people": len(sexes),
        "people_by_sex": {sex: count[sex] for sex in SEXES},
        "variants": writer.variants,
        "skipped": dict(records.skipped),
        "files": listing(target),
    }
    (target / SNAPSHOT_FILE).write_bytes(record_bytes(content))
    _settle(target)
    return read_snapshot(target)


def _settle(folder: Path) -> None:
    """Make the files read-only and see them onto the disk."""
    for path in (*folder.iterdir(), folder):
        path.chmod(_FOLDER_MODE if path == folder else _FILE_MODE)  # whatever the umask
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
