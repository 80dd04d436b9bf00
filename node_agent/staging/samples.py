"""The samples file: who is in the dataset, and of which sex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hansa.contract.errors import HansaError, Reason

SEXES: Final = ("female", "male", "unknown")
_FILE_BYTES: Final = 64 << 20


def read_samples(path: Path) -> Mapping[str, str]:
    """Return the sex of each sample in the file.

    The file is tab-separated with a header line that has ``sample`` and
    ``sex``; other columns are nobody's business here and are not kept.

    Raises:
        HansaError: ``SAMPLES_INVALID``, naming the line.
    """
    lines = _lines(path)
    columns = lines[0].split("\t") if lines else []
    if columns.count("sample") != 1 or columns.count("sex") != 1:
        raise _invalid("The samples file's first line must have the tab-separated columns sample and sex.")
    sample_at, sex_at = columns.index("sample"), columns.index("sex")
    sexes: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(columns) or not cells[sample_at]:
            raise _invalid(f"Line {number} of the samples file must have {len(columns)} tab-separated columns.")
        if cells[sex_at] not in SEXES:
            raise _invalid(f"Line {number} of the samples file: sex must be one of {', '.join(SEXES)}.")
        if cells[sample_at] in sexes:
            raise _invalid(f"Line {number} of the samples file repeats an earlier sample.")
        sexes[cells[sample_at]] = cells[sex_at]
    return sexes


def _invalid(public: str, *, log: str = "") -> HansaError:
    return HansaError(Reason.SAMPLES_INVALID, public, field="samples", log=log)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise _invalid("The samples file is over 64 MiB.")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise _invalid("The samples file cannot be opened.", log=str(error)) from error
    except UnicodeDecodeError as error:
        raise _invalid("The samples file is not UTF-8 text.") from error


def sexes_in_order(samples: Sequence[str], sexes: Mapping[str, str]) -> tuple[str, ...]:
    """Return the sex of each of ``samples`` (the VCF's, in its order).

    Raises:
        HansaError: ``SAMPLES_MISMATCH``; the text counts, it names nobody.
    """
    missing = sum(sample not in sexes for sample in samples)
    extra = len(sexes) - (len(samples) - missing)
    if missing or extra:
        raise HansaError(
            Reason.SAMPLES_MISMATCH,
            f"The samples file and the VCF must name the same people: {missing} of the VCF's {len(samples)} are not "
            f"in the samples file, {extra} of the samples file's {len(sexes)} are not in the VCF.",
            field="samples",
        )
    return tuple(sexes[sample] for sample in samples)
