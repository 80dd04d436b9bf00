"""Writes the files of a snapshot, variant by variant, in bounded memory.

The PGEN writer must know the number of variants before the first one, and a
VCF tells it only at the end. So genotypes go to a spool of two bits each first
and from there into the PGEN.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pgenlib

from hansa.contract.variants import AUTOSOMES
from node_agent.staging.records import MISSING, BiallelicVariant, Genotypes
from node_agent.staging.snapshot import (
    INDEX_CHROM,
    INDEX_OFFSET,
    INDEX_POS,
    INDEX_RS,
    INDEX_RS_ROW,
    PGEN,
    PSAM,
    PVAR,
)

_SPOOL: Final = "genotypes.spool"
_BATCH_CELLS: Final = 1 << 20
_PLINK_SEX: Final = {"female": "2", "male": "1", "unknown": "NA"}
_PGEN_MISSING: Final = -9
_PVAR_HEADER: Final = b"#CHROM\tPOS\tID\tREF\tALT\n"


class SnapshotWriter:
    """One snapshot being written into a folder. Call ``add``, then ``finish``."""

    def __init__(self, folder: Path, sexes: Sequence[str]) -> None:
        self.variants = 0
        self._folder = folder
        self._people = len(sexes)
        self._rows = max(1, _BATCH_CELLS // self._people)
        self._batch = np.full((self._rows, -(-self._people // 4) * 4), 0, np.uint8)
        self._filled = 0
        self._index = _Index()
        self._spool = (folder / _SPOOL).open("wb")
        self._pvar = (folder / PVAR).open("wb")
        self._pvar.write(_PVAR_HEADER)
        (folder / PSAM).write_text(_psam(sexes), encoding="ascii")

    def add(self, variant: BiallelicVariant) -> None:
        """Append one variant.

        Raises:
            OSError: the folder's disk is full, or fails.
        """
        line = f"{variant.chrom}\t{variant.pos}\t{variant.rsid}\t{variant.ref}\t{variant.alt}\n".encode()
        self._index.add(variant, self._pvar.tell())
        self._pvar.write(line)
        self._batch[self._filled, : self._people] = variant.genotypes
        self._filled += 1
        self.variants += 1
        if self._filled == self._rows:
            self._flush()

    def _flush(self) -> None:
        quads = self._batch[: self._filled].reshape(self._filled, -1, 4)
        packed = quads[:, :, 0] | quads[:, :, 1] << 2 | quads[:, :, 2] << 4 | quads[:, :, 3] << 6
        self._spool.write(packed.tobytes())
        self._filled = 0

    def close(self) -> None:
        """Give the files back; what is written so far is not a snapshot."""
        self._spool.close()
        self._pvar.close()

    def finish(self) -> None:
        """Write what is left; at least one variant was added.

        Raises:
            OSError: the folder's disk is full, or fails.
        """
        self._flush()
        end = self._pvar.tell()
        self.close()
        spool = self._folder / _SPOOL
        _write_pgen(self._folder / PGEN, self._people, self.variants, self._unpacked(spool))
        self._index.write(self._folder, end)
        spool.unlink()

    def _unpacked(self, spool: Path) -> Iterator[Genotypes]:
        width = -(-self._people // 4)
        table = _unpack_table()
        with spool.open("rb") as content:
            while block := content.read(width * self._rows):
                rows = np.frombuffer(block, np.uint8).reshape(-1, width)
                genotypes = table[rows].reshape(len(rows), -1)[:, : self._people]
                yield np.ascontiguousarray(genotypes)


def _psam(sexes: Sequence[str]) -> str:
    # People are numbered: no analysis needs their ids, so none gets them.
    lines = [f"{number}\t{_PLINK_SEX[sex]}\n" for number, sex in enumerate(sexes, start=1)]
    return "#IID\tSEX\n" + "".join(lines)


def _unpack_table() -> npt.NDArray[np.int8]:
    """Return the four genotypes that each byte of the spool holds, shape (256, 4)."""
    codes = np.array([0, 1, 2, _PGEN_MISSING], np.int8)
    shifted = np.arange(256, dtype=np.uint16)[:, None] >> np.array([0, 2, 4, 6], np.uint16)
    table: npt.NDArray[np.int8] = codes[shifted & MISSING]
    return table


def _write_pgen(path: Path, people: int, variants: int, blocks: Iterator[Genotypes]) -> None:
    try:
        with pgenlib.PgenWriter(os.fsencode(path), people, variant_ct=variants, nonref_flags=False) as writer:
            for block in blocks:
                writer.append_biallelic_batch(block)
    except RuntimeError as error:  # what pgenlib raises for every failure, a full disk most likely
        raise OSError(f"the PGEN cannot be written: {error}") from error


class _Index:
    """Where variants are, so that a look-up need not read the whole ``.pvar``."""

    def __init__(self) -> None:
        self._chrom = array("B")
        self._pos = array("I")
        self._offset = array("Q")
        self._rs = array("Q")

    def add(self, variant: BiallelicVariant, offset: int) -> None:
        self._chrom.append(int(variant.chrom))
        self._pos.append(variant.pos)
        self._offset.append(offset)
        self._rs.append(0 if variant.rsid == "." else int(variant.rsid[2:]))

    def write(self, folder: Path, end: int) -> None:
        """Write the index.

        ``index.chrom``: (22, 2), first row and row after the last per autosome;
        ``index.pos``: position by row; ``index.offset``: where in the ``.pvar``
        each row's line begins, and the last one's end; ``index.rs`` and
        ``index.rs_row``: the numbers of the rs ids, sorted, and their rows.
        """
        self._offset.append(end)
        chrom = np.array(self._chrom, np.uint8)
        rs = np.array(self._rs, np.uint64)
        named = np.flatnonzero(rs).astype(np.uint32)
        order = named[np.argsort(rs[named], kind="stable")]
        arrays: dict[str, npt.NDArray[np.generic]] = {
            INDEX_CHROM: np.array([_span(chrom, int(name)) for name in AUTOSOMES], np.uint32),
            INDEX_POS: np.array(self._pos, np.uint32),
            INDEX_OFFSET: np.array(self._offset, np.uint64),
            INDEX_RS: rs[order],
            INDEX_RS_ROW: order,
        }
        for name, values in arrays.items():
            np.save(folder / name, values, allow_pickle=False)


def _span(chrom: npt.NDArray[np.uint8], number: int) -> tuple[int, int]:
    # Each chromosome's rows are together: the reader refuses others.
    rows = np.flatnonzero(chrom == number)
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
