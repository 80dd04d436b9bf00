"""Counts alleles of the variants asked for, in one dataset snapshot.

Runs in the sandbox with nothing but numpy and pgenlib, so that it starts fast
and can be reviewed by itself. The parameters were checked before (manifest) and
are in normal form.

For a variant by name the summary has every allele at its position: the
disclosure rule must know them all, and drops what nobody asked for.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pgenlib

Rows = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]  # (rows, 4): people with 0, 1, 2 copies, without a genotype

_STRATUM_OF_SEX = {"1": "male", "2": "female", "NA": "unknown"}
_BY_SEX = ("female", "male", "unknown")


class Snapshot:
    """The files of a snapshot, opened where they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spans = np.load(folder / "index.chrom.npy")
        self._positions = np.load(folder / "index.pos.npy", mmap_mode="r")

    def rows_between(self, chrom: int, start: int, end: int) -> tuple[int, int]:
        """Return the first row and the one after the last of the variants at ``start`` to ``end``."""
        first, last = (int(row) for row in self._spans[chrom - 1])
        positions = self._positions[first:last]
        return first + _place(positions, start, "left"), first + _place(positions, end, "right")

    def rows_of_rs(self, number: int) -> list[int]:
        """Return the rows of the variants with the rs id of this number."""
        numbers = np.load(self.folder / "index.rs.npy", mmap_mode="r")
        first, last = _place(numbers, number, "left"), _place(numbers, number, "right")
        return [int(row) for row in np.load(self.folder / "index.rs_row.npy", mmap_mode="r")[first:last]]

    def rows_beside(self, row: int) -> range:
        """Return the rows of all variants at the position of ``row``."""
        chrom = int(np.flatnonzero((self._spans[:, 0] <= row) & (row < self._spans[:, 1]))[0]) + 1
        position = int(self._positions[row])
        return range(*self.rows_between(chrom, position, position))

    def described(self, rows: Rows) -> tuple[list[str], list[str]]:
        """Return each row's variant, ``chrom:pos:ref:alt``, and its rs id or nothing."""
        columns = b"".join(self._lines(rows)).decode("ascii").split()  # five a line, none empty
        labels = map(":".join, zip(columns[0::5], columns[1::5], columns[3::5], columns[4::5], strict=True))
        return list(labels), ["" if name == "." else name for name in columns[2::5]]

    def _lines(self, rows: Rows) -> Iterator[bytes]:
        """Yield the rows' lines of the ``.pvar``, one piece for rows that follow each other."""
        if not len(rows):
            return
        offsets = np.load(self.folder / "index.offset.npy", mmap_mode="r")
        with (self.folder / "genotypes.pvar").open("rb") as pvar:
            for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
                start, end = int(offsets[run[0]]), int(offsets[int(run[-1]) + 1])
                pvar.seek(start)
                yield pvar.read(end - start)

    def people_by_sex(self) -> dict[str, Rows]:
        """Return who is in each stratum that has anybody, and in both sexes anyway."""
        lines = (self.folder / "genotypes.psam").read_text(encoding="ascii").splitlines()[1:]
        strata = np.array([_STRATUM_OF_SEX[line.split("\t")[1]] for line in lines])
        found = {stratum: np.flatnonzero(strata == stratum).astype(np.uint32) for stratum in _BY_SEX}
        return {stratum: people for stratum, people in found.items() if len(people) or stratum != "unknown"}

    def people(self) -> int:
        """Return the number of people."""
        return (self.folder / "genotypes.psam").read_bytes().count(b"\n") - 1

    def counts(self, rows: Rows, everybody: int, people: Rows | None) -> Counts:
        """Return the genotype counts of ``people`` (None: of all) at each row."""
        found = np.zeros((len(rows), 4), np.uint32)
        if people is not None and not len(people):
            return found.astype(np.int64)
        path = os.fsencode(self.folder / "genotypes.pgen")
        with pgenlib.PgenReader(path, raw_sample_ct=everybody, sample_subset=people) as reader:
            count = reader.count
            for row, out in zip(rows.tolist(), found, strict=True):
                count(row, out)
        return found.astype(np.int64)


def _place(ascending: npt.NDArray[np.unsignedinteger[Any]], value: int, side: Literal["left", "right"]) -> int:
    """Return where ``value`` belongs among ``ascending``."""
    # A value of another type would make numpy read and convert all of a mapped array.
    limit = int(np.iinfo(ascending.dtype).max)
    return int(np.searchsorted(ascending, ascending.dtype.type(min(value, limit)), side))


def asked_rows(snapshot: Snapshot, parameters: Mapping[str, str]) -> Rows:
    """Return the rows to count, ascending; what the dataset does not have is not there."""
    if "region" in parameters:
        chrom, _, span = parameters["region"].partition(":")
        start, _, end = span.partition("-")
        return np.arange(*snapshot.rows_between(int(chrom), int(start), int(end)), dtype=np.uint32)
    rows: set[int] = set()
    for name in parameters["variants"].split(","):
        if name.startswith("rs"):
            for row in snapshot.rows_of_rs(int(name[2:])):
                rows.update(snapshot.rows_beside(row))
        else:
            chrom, position = name.split(":")[:2]
            rows.update(range(*snapshot.rows_between(int(chrom), int(position), int(position))))
    return np.array(sorted(rows), np.uint32)


def counted(snapshot: Snapshot, rows: Rows, *, by_sex: bool) -> dict[str, Counts]:
    """Return the genotype counts at each row, by stratum, ``all`` first."""
    everybody = snapshot.people()
    if not by_sex:
        return {"all": snapshot.counts(rows, everybody, None)}
    strata = {stratum: snapshot.counts(rows, everybody, people) for stratum, people in snapshot.people_by_sex().items()}
    return {"all": sum(strata.values(), np.zeros((len(rows), 4), np.int64)), **strata}


def cells(counts: Counts) -> dict[str, npt.NDArray[np.int64]]:
    """Return what the summary says of each row: its five arrays, by name."""
    none, one, two = counts[:, 0], counts[:, 1], counts[:, 2]
    people = none + one + two
    return {"people": people, "an": 2 * people, "ac": one + 2 * two, "carriers": one + two, "others": none + one}


def summary(labels: Sequence[str], rsids: Sequence[str], strata: Mapping[str, Counts]) -> dict[str, object]:
    """Return the summary: of each variant in each stratum."""
    by_stratum = [cells(counts) for counts in strata.values()]
    arrays = {
        name: {
            "dtype": "int64",
            "axes": ["variant", "stratum"],
            "merge": "sum",
            "values": np.stack([each[name] for each in by_stratum], axis=1).ravel().tolist(),
        }
        for name in by_stratum[0]
    }
    notes = {"variant": {"rsid": list(rsids)}} if any(rsids) else {}
    return {"v": 1, "axes": {"variant": list(labels), "stratum": list(strata)}, "notes": notes, "arrays": arrays}


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and write the one summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--parameters", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True)
    given = parser.parse_args(arguments)
    parameters = json.loads(given.parameters.read_bytes())
    snapshot = Snapshot(given.data)
    rows = asked_rows(snapshot, parameters)
    strata = counted(snapshot, rows, by_sex="stratify" in parameters)
    text = json.dumps(summary(*snapshot.described(rows), strata), separators=(",", ":"))
    given.summary.write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
