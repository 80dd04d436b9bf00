"""What can be said of a VCF before its records are parsed.

We read the header ourselves, so that htslib, whose messages quote what they
read, only ever sees files whose header we could describe.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.variants import AUTOSOMES

# The empty block that ends every complete BGZF file (SAM specification, 4.1.2).
_EOF_BLOCK: Final = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_BGZF_START: Final = b"\x1f\x8b\x08\x04"
_BGZF_HEADER_BYTES: Final = 18
_HEADER_BYTES: Final = 64 << 20
_LINE_BYTES: Final = 32 << 20
_FIXED: Final = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
_CONTIG: Final = re.compile(r"##contig=<(?P<fields>.*)>")
_CONTIG_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._*-]{0,63}")
_INDEX_MAGIC: Final = {".tbi": b"TBI\1", ".csi": b"CSI\1"}


@dataclass(frozen=True, slots=True)
class VcfHeader:
    """What a VCF's header says. ``lengths`` are bases by autosome, where given."""

    samples: tuple[str, ...]
    lengths: Mapping[str, int]


def autosome(contig: str) -> str | None:
    """Return the autosome (``1`` to ``22``) that ``contig`` names, with or without ``chr``."""
    name = contig.removeprefix("chr")
    return name if name in AUTOSOMES else None


def shown_contig(contig: str) -> str | None:
    """Return ``contig`` if it has the shape of a contig's name and may be told."""
    return contig if _CONTIG_NAME.fullmatch(contig) else None


def check_vcf_file(vcf: Path) -> VcfHeader:
    """Return the header of a complete, compressed and indexed VCF.

    Raises:
        HansaError: ``VCF_UNREADABLE``, ``VCF_TRUNCATED``, ``VCF_NOT_INDEXED``,
            ``VCF_SAMPLE_DUPLICATE``, or ``DATASET_INVALID``; nobody is in it.
    """
    if not vcf.is_file():
        raise _unreadable("There is no such VCF file.")
    try:
        with vcf.open("rb") as file:
            _check_bgzf(file)
        header = _read_header(vcf)
    except OSError as error:
        raise _unreadable("The VCF file cannot be opened.", log=str(error)) from error
    _check_index(vcf)
    return header


def _unreadable(public: str, *, log: str = "") -> HansaError:
    return HansaError(Reason.VCF_UNREADABLE, public, field="vcf", log=log)


def truncated() -> HansaError:
    """Return the refusal of a file that is cut off or damaged."""
    return HansaError(Reason.VCF_TRUNCATED, "The VCF is cut off or damaged; fetch it again.", field="vcf")


def _check_bgzf(file: BinaryIO) -> None:
    start = file.read(_BGZF_HEADER_BYTES)
    if len(start) < _BGZF_HEADER_BYTES or not start.startswith(_BGZF_START) or start[12:14] != b"BC":
        raise _unreadable("The file is not compressed with bgzip; compress the VCF with `bgzip`.")
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_EOF_BLOCK)))
    if file.read() != _EOF_BLOCK:
        raise truncated()


def _read_header(vcf: Path) -> VcfHeader:
    lengths: dict[str, int] = {}
    try:
        for line in _header_lines(vcf):
            if line.startswith(b"##"):
                _note_contig(line.decode("utf-8", "replace").rstrip("\r\n"), lengths)
            else:
                return VcfHeader(_samples(line), lengths)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise truncated() from error
    raise _unreadable("The VCF has no #CHROM line.")


def _header_lines(vcf: Path) -> Iterator[bytes]:
    with gzip.open(vcf, "rb") as text:
        read = 0
        while line := text.readline(_LINE_BYTES):
            if read == 0 and not line.startswith(b"##fileformat=VCF"):
                raise _unreadable("The file is no VCF: its first line must be ##fileformat=VCFv4.x.")
            read += len(line)
            if not line.endswith(b"\n") or read > _HEADER_BYTES:
                raise _unreadable("The VCF's header is not complete, or too long.")
            yield line


def _note_contig(line: str, lengths: dict[str, int]) -> None:
    match = _CONTIG.fullmatch(line)
    if match is None:
        return
    fields = dict(part.partition("=")[::2] for part in match["fields"].split(","))
    name, length = autosome(fields.get("ID", "")), fields.get("length", "")
    if name is not None and length.isdecimal():
        lengths[name] = int(length)


def _samples(line: bytes) -> tuple[str, ...]:
    if not line.startswith(_FIXED):
        raise _unreadable("The VCF's #CHROM line is not valid.")
    try:
        columns = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise _unreadable("The VCF's #CHROM line is not UTF-8.") from error
    samples = tuple(columns[9:])
    if not samples:
        raise HansaError(Reason.DATASET_INVALID, "The VCF has no samples, only sites.", field="vcf")
    seen: set[str] = set()
    for column, sample in enumerate(samples, start=10):
        if sample in seen:
            # The name itself is data of the dataset; the column says enough.
            raise HansaError(
                Reason.VCF_SAMPLE_DUPLICATE,
                f"The VCF names one sample twice: column {column} repeats an earlier one.",
                field="vcf",
            )
        seen.add(sample)
    return samples


def _check_index(vcf: Path) -> None:
    for suffix, magic in _INDEX_MAGIC.items():
        index = vcf.with_name(vcf.name + suffix)
        if index.is_file():
            if not _is_index(index, magic):
                raise HansaError(
                    Reason.VCF_NOT_INDEXED,
                    f"The VCF's index {suffix} cannot be read; make it again with `tabix -f -p vcf`.",
                    field="vcf",
                )
            return
    raise HansaError(Reason.VCF_NOT_INDEXED, field="vcf")


def _is_index(index: Path, magic: bytes) -> bool:
    try:
        with gzip.open(index, "rb") as content:
            good = content.read(len(magic)) == magic
            while content.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return good


def is_intact(vcf: Path) -> bool:
    """Say whether every block of ``vcf`` decompresses to what its checksum says.

    Reads the whole file; it serves to tell a damaged file from one with a bad
    record, after htslib has stopped and does not say which.
    """
    try:
        with gzip.open(vcf, "rb") as content:
            while content.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True
