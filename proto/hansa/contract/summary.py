"""Summaries: named, typed, labelled arrays with a declared merge.

What a run writes, what a node releases and what the coordinator combines are
all of this form. A cell is ``None`` where nothing is said: not released, or no
part has said anything. ``None`` is the identity of every merge, which makes
the merge a commutative, associative algebra: the merge of the parts is the
summary of the whole.

JSON form (one object): ``{"v": 1, "axes": {axis: [label, …]}, "notes": {axis:
{note: [text, …]}}, "arrays": {name: {"dtype", "axes", "merge", "values"}}}``
with ``values`` flat in row-major order. The one note is ``rsid`` on an axis of
variants.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.manifest import ArraySpec, AxisSpec, SummarySpec
from hansa.contract.strict import strict_json
from hansa.contract.variants import RS_ID, parse_variant

Cell = int | float | None
Key = tuple[str, ...]

_INT64: Final = 1 << 63
_RSID: Final = "rsid"


@dataclass(frozen=True, slots=True)
class Array:
    """One array. ``cells`` maps one label per axis to a value; absent is None."""

    dtype: str
    axes: tuple[str, ...]
    merge: str
    cells: Mapping[Key, int | float]


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary. ``notes`` maps a variant's label to its rs id, where known."""

    axes: Mapping[str, tuple[str, ...]]
    arrays: Mapping[str, Array]
    notes: Mapping[str, str] = field(default_factory=dict)


def parse_summary(data: bytes, spec: SummarySpec, *, released_only: bool) -> Summary:
    """Return the summary in ``data`` if it is exactly what ``spec`` declares.

    Args:
        data: JSON as in the module's docstring.
        spec: the manifest's schema.
        released_only: expect only the arrays that may leave a node (what the
            coordinator receives), or all of them (what a run writes).

    Raises:
        HansaError: ``SUMMARY_CORRUPT``; the field says where it departs from
            the schema, the text never quotes a value.
    """
    try:
        raw = strict_json(data)
        expected = {n: s for n, s in spec.arrays.items() if s.released or not released_only}
        _keys(raw, {"v", "axes", "notes", "arrays"}, "summary")
        _need(type(raw["v"]) is int and raw["v"] == 1, "v")
        axes = {name: _labels(raw["axes"], name, axis) for name, axis in spec.axes.items()}
        _keys(raw["axes"], set(spec.axes), "axes")
        _keys(raw["arrays"], set(expected), "arrays")
        notes = _notes(raw["notes"], axes, spec.axes)
        arrays = {name: _array(raw["arrays"][name], name, array, axes) for name, array in expected.items()}
    except HansaError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # Without its cause: a traceback in a log must not quote the bytes either.
        raise _corrupt("summary", type(error).__name__) from None
    return Summary(axes, arrays, notes)


def _corrupt(where: str, log: str = "") -> HansaError:
    return HansaError(Reason.SUMMARY_CORRUPT, f"The summary departs from its schema at {where}.", field=where, log=log)


def _need(condition: bool, where: str) -> None:
    if not condition:
        raise _corrupt(where)


def _keys(value: Any, expected: set[str], where: str) -> None:
    _need(isinstance(value, dict) and set(value) == expected, where)


def _labels(axes: Any, name: str, axis: AxisSpec) -> tuple[str, ...]:
    labels = axes[name]
    _need(isinstance(labels, list) and all(isinstance(label, str) for label in labels), f"axes.{name}")
    _need(len(set(labels)) == len(labels), f"axes.{name}")
    if axis.labels == "choice":
        _need(set(labels) <= set(axis.choices), f"axes.{name}")
    else:
        _need(all(str(parse_variant(label)) == label for label in labels), f"axes.{name}")
    return tuple(labels)


def _notes(raw: Any, axes: Mapping[str, tuple[str, ...]], specs: Mapping[str, AxisSpec]) -> dict[str, str]:
    _need(isinstance(raw, dict), "notes")
    found: dict[str, str] = {}
    for axis, notes in raw.items():
        _need(axis in specs and specs[axis].labels == "variant", "notes")
        _keys(notes, {_RSID}, f"notes.{axis}")
        texts = notes[_RSID]
        _need(isinstance(texts, list) and len(texts) == len(axes[axis]), f"notes.{axis}")
        for label, text in zip(axes[axis], texts, strict=True):
            _need(text == "" or (isinstance(text, str) and RS_ID.fullmatch(text) is not None), f"notes.{axis}")
            if text:
                found[label] = text
    return found


def _array(raw: Any, name: str, spec: ArraySpec, axes: Mapping[str, tuple[str, ...]]) -> Array:
    where = f"arrays.{name}"
    _keys(raw, {"dtype", "axes", "merge", "values"}, where)
    _need(raw["dtype"] == spec.dtype and raw["axes"] == list(spec.axes) and raw["merge"] == spec.merge, where)
    values = raw["values"]
    _need(isinstance(values, list), where)
    keys = list(itertools.product(*(axes[axis] for axis in spec.axes)))
    _need(len(values) == len(keys), where)
    _need(all(_fits(value, spec.dtype) for value in values), where)
    cells = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
    return Array(spec.dtype, spec.axes, spec.merge, cells)


def _fits(value: Cell, dtype: str) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return False
    if dtype == "int64":
        return isinstance(value, int) and -_INT64 <= value < _INT64
    return isinstance(value, float) and math.isfinite(value)


def summary_bytes(summary: Summary) -> bytes:
    """Return the JSON form of ``summary``: made once, then stored and sent as is."""
    notes = {
        axis: {_RSID: [summary.notes.get(label, "") for label in labels]}
        for axis, labels in summary.axes.items()
        if any(label in summary.notes for label in labels)
    }
    arrays = {
        name: {
            "dtype": array.dtype,
            "axes": list(array.axes),
            "merge": array.merge,
            "values": [array.cells.get(key) for key in itertools.product(*(summary.axes[a] for a in array.axes))],
        }
        for name, array in summary.arrays.items()
    }
    value = {"v": 1, "axes": {a: list(labels) for a, labels in summary.axes.items()}, "notes": notes, "arrays": arrays}
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def merge(parts: Sequence[Summary]) -> Summary:
    """Return the merge of ``parts``, which are of one schema.

    Axes become the sorted union of the parts' labels. Floats are added in
    sorted order (``math.fsum``), so that the order of the parts is nothing.

    Raises:
        ValueError: no parts, or two with different arrays.
        OverflowError: a merged integer is no int64.
    """
    if not parts:
        raise ValueError("nothing to merge")
    names = set(parts[0].arrays)
    if any(set(part.arrays) != names for part in parts):
        raise ValueError("parts of different schemas")
    axes = {axis: tuple(sorted({label for part in parts for label in part.axes[axis]})) for axis in parts[0].axes}
    arrays = {name: _merge_arrays([part.arrays[name] for part in parts]) for name in sorted(names)}
    return Summary(axes, arrays, _merge_notes(parts))


def _merge_notes(parts: Iterable[Summary]) -> dict[str, str]:
    # Two parts that know a variant by two rs ids: the smaller one, whatever the order.
    notes: dict[str, str] = {}
    for label, text in sorted(itertools.chain.from_iterable(part.notes.items() for part in parts)):
        notes.setdefault(label, text)
    return notes


def _merge_arrays(parts: Sequence[Array]) -> Array:
    first = parts[0]
    if any((p.dtype, p.axes, p.merge) != (first.dtype, first.axes, first.merge) for p in parts):
        raise ValueError("arrays of different types")
    gathered: dict[Key, list[int | float]] = {}
    for key, value in _cells(parts):
        gathered.setdefault(key, []).append(value)
    cells = {key: _merge_values(values, first) for key, values in gathered.items()}
    return Array(first.dtype, first.axes, first.merge, cells)


def _cells(parts: Iterable[Array]) -> Iterator[tuple[Key, int | float]]:
    for part in parts:
        yield from part.cells.items()


def _merge_values(values: Sequence[int | float], array: Array) -> int | float:
    if array.merge != "sum":
        return min(values) if array.merge == "min" else max(values)
    if array.dtype == "float64":
        return math.fsum(values)
    total = sum(values)
    if not -_INT64 <= total < _INT64:
        raise OverflowError("a merged count is no int64")
    return total
