"""Mutants of JSON: each value changed, each key removed, one added, each type another; and of how it is written."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

Nudge = Callable[[Any], Any]
Path = tuple[str | int, ...]

_OVERSIZE = 70_000
_ADDED = "added_by_nobody"


@dataclass(frozen=True, slots=True)
class JsonMutant:
    """One change of a value. ``path`` has ``[]`` for any place of a list."""

    id: str
    path: str
    edit: Callable[[Any], Any]

    def of(self, honest: Any) -> Any:
        """Return ``honest`` with the change; ``honest`` itself stays as it is."""
        return self.edit(copy.deepcopy(honest))


@dataclass(frozen=True, slots=True)
class RawMutant:
    """One change of the written form."""

    id: str
    edit: Callable[[bytes], bytes]


def json_mutants(example: Any, others: Mapping[str, Any] | None = None) -> Iterator[JsonMutant]:
    """Yield the mutants of values of the shape of ``example``.

    Args:
        example: the honest value.
        others: by path, a value of the same kind that belongs to something else.
    """
    yield from _walk(example, (), others or {})


def few_of_each(mutants: Iterable[JsonMutant], most: int) -> Iterator[JsonMutant]:
    """Yield at most ``most`` mutants of each place, other kinds at each, where all of them would take too long."""
    places: dict[str, list[JsonMutant]] = {}
    for mutant in mutants:
        places.setdefault(mutant.id.rsplit(":", 1)[0], []).append(mutant)
    for number, found in enumerate(places.values()):
        for step in range(min(most, len(found))):
            yield found[(number + step) % len(found)]


def raw_mutants(data: bytes) -> Iterator[RawMutant]:
    """Yield other ways to write what ``data`` says, and ways to break it."""
    value = json.loads(data)
    yield RawMutant("raw:spaced", lambda d: d + b" ")
    yield RawMutant("raw:indented", lambda d: json.dumps(json.loads(d), indent=2).encode())
    yield RawMutant("raw:byte-order-mark", lambda d: b"\xef\xbb\xbf" + d)
    yield RawMutant("raw:shortened", lambda d: d[:-1])
    yield RawMutant("raw:followed", lambda d: d + b"{}")
    yield RawMutant("raw:deep", lambda d: b"[" * 1_000 + d + b"]" * 1_000)
    if isinstance(value, dict) and value:
        key = min(value)
        yield RawMutant(f"raw:{key}-twice", lambda d: _twice(d, key))


def schema_paths(model: type[BaseModel]) -> set[str]:
    """Return the path of each property that the model's JSON schema declares, ``*`` for any key of a map."""
    schema = model.model_json_schema(by_alias=True)
    return set(_properties(schema, schema.get("$defs", {}), ()))


def covers(mutants: set[str], declared: str) -> bool:
    """Say whether one of the mutated paths is the ``declared`` one."""
    wanted = declared.split(".")
    return any(
        len(parts) == len(wanted) and all(w in ("*", p) for p, w in zip(parts, wanted, strict=True))
        for parts in (path.split(".") for path in mutants)
    )


def nudged(text: str) -> str:
    """Return ``text`` with its last letter or digit another one of its kind (hex stays hex)."""
    for place in range(len(text) - 1, -1, -1):
        char = text[place]
        if char.isascii() and char.isalnum():
            return text[:place] + _neighbour(char) + text[place + 1 :]
    return text + "x"


def _neighbour(char: str) -> str:
    if char in "9fFzZ":
        return {"9": "8", "f": "e", "F": "E", "z": "y", "Z": "Y"}[char]
    return chr(ord(char) + 1)


def _walk(value: Any, path: Path, others: Mapping[str, Any]) -> Iterator[JsonMutant]:
    name = _name(path)
    if path:
        yield _changed(path, "null", lambda _: None) if value is not None else _changed(path, "text", lambda _: "x")
    if isinstance(value, dict):
        yield from _of_object(value, path, others)
    elif isinstance(value, list):
        yield from _of_list(value, path, others)
    else:
        for kind, change in _of_leaf(value):
            yield _changed(path, kind, change)
    if name in others:
        yield _changed(path, "others", lambda _: others[name])


def _of_object(value: dict[str, Any], path: Path, others: Mapping[str, Any]) -> Iterator[JsonMutant]:
    yield _changed(path, "key-added", lambda v: {**v, _ADDED: 1})
    yield _changed(path, "made-list", lambda v: [v])
    for key in sorted(value):
        yield JsonMutant(f"{_shown((*path, key))}:removed", _name((*path, key)), _edit(path, _without(key)))
        yield from _walk(value[key], (*path, key), others)


def _of_list(value: list[Any], path: Path, others: Mapping[str, Any]) -> Iterator[JsonMutant]:
    yield _changed(path, "made-object", lambda v: {"0": v})
    yield _changed(path, "emptied" if value else "filled", lambda v: [] if v else [None])
    for number, element in enumerate(value):
        place = (*path, number)
        yield JsonMutant(f"{_shown(place)}:dropped", _name(place), _edit(path, _cut(number, keep=0)))
        yield JsonMutant(f"{_shown(place)}:doubled", _name(place), _edit(path, _cut(number, keep=2)))
        if number:
            yield JsonMutant(f"{_shown(place)}:swapped", _name(place), _edit(path, _swap(number)))
        yield from _walk(element, place, others)


def _of_leaf(value: Any) -> Iterator[tuple[str, Nudge]]:
    if isinstance(value, bool):
        yield from (("negated", lambda v: not v), ("number", int), ("text", str))
    elif isinstance(value, int | float):
        yield from (("raised", lambda v: v + 1), ("lowered", lambda v: v - 1), ("zeroed", lambda _: 0))
        yield from (
            ("huge", lambda _: 1 << 70),
            ("text", str),
            ("flag", lambda _: True),
            ("fraction", lambda v: v + 0.5),
        )
    elif isinstance(value, str):
        yield from _of_text(value)
    else:
        yield from (("number", lambda _: 1), ("object", lambda _: {}), ("list", lambda _: []))


def _of_text(value: str) -> Iterator[tuple[str, Nudge]]:
    yield from (("nudged", nudged), ("emptied", lambda _: ""), ("oversized", lambda v: v + "A" * _OVERSIZE))
    yield from (("number", lambda _: 1), ("in-list", lambda v: [v]), ("newline", lambda v: v + "\n"))
    if _is_time(value):
        yield from (("later", lambda v: _moved(v, 400)), ("earlier", lambda v: _moved(v, -400)))
        yield "naive", lambda v: v.removesuffix("Z").removesuffix("+00:00")


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return "T" in text


def _moved(text: str, days: int) -> str:
    moved = datetime.fromisoformat(text) + timedelta(days=days)
    # TUF writes its times in one form only.
    return moved.strftime("%Y-%m-%dT%H:%M:%SZ") if text.endswith("Z") and "." not in text else moved.isoformat()


def _changed(path: Path, kind: str, change: Nudge) -> JsonMutant:
    return JsonMutant(f"{_shown(path)}:{kind}", _name(path), _edit(path, change))


def _edit(path: Path, change: Nudge) -> Callable[[Any], Any]:
    def edit(value: Any) -> Any:
        if not path:
            return change(value)
        holder = value
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = change(holder[path[-1]])
        return value

    return edit


def _without(key: str) -> Nudge:
    return lambda v: {k: inner for k, inner in v.items() if k != key}


def _cut(number: int, *, keep: int) -> Nudge:
    return lambda v: v[:number] + [copy.deepcopy(v[number]) for _ in range(keep)] + v[number + 1 :]


def _swap(number: int) -> Nudge:
    return lambda v: [*v[: number - 1], v[number], v[number - 1], *v[number + 1 :]]


def _twice(data: bytes, key: str) -> bytes:
    value = json.loads(data)
    return data.rstrip()[:-1] + f",{json.dumps(key)}:{json.dumps(value[key])}}}".encode()


def _shown(path: Path) -> str:
    """Return the path with its places in lists, as ids have it."""
    return ".".join(f"[{part}]" if isinstance(part, int) else part for part in path) or "$"


def _name(path: Path) -> str:
    return ".".join("[]" if isinstance(part, int) else part for part in path)


def _properties(schema: Mapping[str, Any], defs: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if "$ref" in schema:
        yield from _properties(defs[schema["$ref"].rsplit("/", 1)[-1]], defs, path)
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _properties(option, defs, path)
    for key, inner in schema.get("properties", {}).items():
        yield ".".join((*path, key))
        yield from _properties(inner, defs, (*path, key))
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        yield ".".join((*path, "*"))
        yield from _properties(extra, defs, (*path, "*"))
    items = schema.get("items") or next(iter(schema.get("prefixItems", ())), None)
    if isinstance(items, Mapping):
        yield from _properties(items, defs, (*path, "[]"))
