"""Mutants of messages and of JSON: each field changed once, by what its type allows.

Nothing is listed by hand. A message's mutants come from its protobuf
descriptor, so that a field that is added tomorrow has its mutants tomorrow; a
JSON value's come from the value, and ``schema_paths`` says of its pydantic
model which paths there have to be. ``bytes`` fields that hold a serialised
message or JSON are opened by a ``Nested`` and mutated inside.

A mutant is an edit, not a value: it is applied to a fresh copy of an honest
message of the same shape. Its id is the field's path and what was done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.support.json_mutants import Nudge, json_mutants, nudged, raw_mutants

T = TypeVar("T")
M = TypeVar("M", bound=Message)

# Beyond the limit of every field, within the limit of a frame.
OVERSIZE = 70_000
_UNKNOWN_ENUM = 9_999
# Field 15000 with the number 1: what a later release might send.
_UNKNOWN_FIELD = b"\xc0\xa9\x07\x01"

_UNSIGNED_32 = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32)
_UNSIGNED_64 = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
_SIGNED_32 = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32)


class SameError(Exception):
    """The edit changed nothing in this message: it is no mutant of it."""


@dataclass(frozen=True, slots=True)
class Mutant(Generic[T]):
    """One change. ``field`` is the full name of the descriptor's field, or the path in the JSON."""

    id: str
    field: str
    edit: Callable[[T], T]

    def of(self, honest: T) -> T:
        """Return ``honest`` with the change; ``honest`` itself stays as it is.

        Raises:
            SameError: the change is none here.
        """
        changed = self.edit(_copy(honest))
        if changed == honest:
            raise SameError(self.id)
        return changed


# What a field of bytes holds: gives the mutants of these bytes.
Inside = Callable[[bytes], Iterator[Mutant[bytes]]]


@dataclass(frozen=True, slots=True)
class Guide:
    """What the descriptors do not say.

    ``inside`` opens fields of bytes, by the field's full name. ``others`` has,
    by the same, a value of the same kind that belongs to something else.
    """

    inside: Mapping[str, Inside] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)


def message_mutants(example: M, guide: Guide | None = None) -> Iterator[Mutant[M]]:
    """Yield the mutants of messages that are filled like ``example``."""
    for change in _message(example, guide or Guide(), example.DESCRIPTOR.name):
        if change.edit(_copy(example)) != example:
            yield Mutant(change.id, change.field, change.edit)


def message_inside(kind: type[Message], guide: Guide | None = None) -> Inside:
    """Return how to mutate bytes that hold a serialised ``kind``."""

    def inside(data: bytes) -> Iterator[Mutant[bytes]]:
        for mutant in message_mutants(kind.FromString(data), guide):
            yield Mutant(mutant.id, mutant.field, _through(kind.FromString, mutant.edit, _serialised))

    return inside


def json_inside(others: Mapping[str, Any] | None = None) -> Inside:
    """Return how to mutate bytes that hold JSON: its values, and how it is written."""

    def inside(data: bytes) -> Iterator[Mutant[bytes]]:
        for change in json_mutants(json.loads(data), others or {}):
            yield Mutant(change.id, change.path, _through(json.loads, change.edit, _json))
        for written in raw_mutants(data):
            yield Mutant(written.id, "", written.edit)

    return inside


def all_fields(*kinds: Descriptor) -> set[str]:
    """Return the full names of all fields that messages of these kinds may hold, however deep."""
    found: set[str] = set()
    waiting = list(kinds)
    seen: set[str] = set()
    while waiting:
        kind = waiting.pop()
        if kind.full_name in seen:
            continue
        seen.add(kind.full_name)
        for one in kind.fields:
            found.add(one.full_name)
            if one.message_type is not None:
                waiting.append(one.message_type)
    return found


def distinct(mutants: Sequence[Mutant[Any]]) -> set[str]:
    """Return the ids; each must stand once."""
    ids = {mutant.id for mutant in mutants}
    assert len(ids) == len(mutants), sorted(m.id for m in mutants)
    return ids


@dataclass(frozen=True, slots=True)
class _Change:
    id: str
    field: str
    edit: Callable[[Any], Any]


def _message(example: Message, guide: Guide, path: str) -> Iterator[_Change]:
    fields: list[Any] = list(example.DESCRIPTOR.fields)
    for one in fields:
        yield from _field(example, one, guide, f"{path}.{one.name}")
    yield _Change(f"{path}:unknown-field", example.DESCRIPTOR.full_name, _with_unknown_field)


def _field(example: Message, one: FieldDescriptor, guide: Guide, path: str) -> Iterator[_Change]:
    if one.is_repeated:
        yield from _repeated(example, one, guide, path)
    elif one.message_type is not None:
        yield from _submessage(example, one, guide, path)
    else:
        for kind, change in _scalars(one, getattr(example, one.name), guide):
            yield _Change(f"{path}:{kind}", one.full_name, _set(one.name, change))
        for inner in _opened(one, getattr(example, one.name), guide):
            yield _Change(f"{path}>{inner.id}", inner.field or one.full_name, _set(one.name, inner.edit))


def _submessage(example: Message, one: FieldDescriptor, guide: Guide, path: str) -> Iterator[_Change]:
    if example.HasField(one.name):
        yield _Change(f"{path}:unset", one.full_name, lambda m: _cleared(m, one.name))
    else:
        yield _Change(f"{path}:added", one.full_name, lambda m: _added(m, one.name))
        if one.containing_oneof is not None:
            # Its own fields are for an example that has this arm.
            return
    for inner in _message(getattr(example, one.name), guide, path):
        yield _Change(inner.id, inner.field, _at(one.name, inner.edit))


def _repeated(example: Message, one: FieldDescriptor, guide: Guide, path: str) -> Iterator[_Change]:
    values = getattr(example, one.name)
    yield _Change(f"{path}:added", one.full_name, lambda m: _appended(m, one))
    for number in range(len(values)):
        place = f"{path}[{number}]"
        yield _Change(f"{place}:dropped", one.full_name, _listed(one.name, _kept(number, times=0)))
        yield _Change(f"{place}:doubled", one.full_name, _listed(one.name, _kept(number, times=2)))
        if number:
            yield _Change(f"{place}:swapped", one.full_name, _listed(one.name, _swapped(number)))
        if one.message_type is not None:
            for inner in _message(values[number], guide, place):
                yield _Change(inner.id, inner.field, _element(one.name, number, inner.edit))
        else:
            for kind, change in _scalars(one, values[number], guide):
                yield _Change(f"{place}:{kind}", one.full_name, _listed(one.name, _replacing(number, change)))


def _opened(one: FieldDescriptor, value: Any, guide: Guide) -> Iterator[Mutant[bytes]]:
    inside = guide.inside.get(one.full_name)
    return iter(()) if inside is None or not value else inside(value)


def _scalars(one: FieldDescriptor, value: Any, guide: Guide) -> Iterator[tuple[str, Nudge]]:
    if one.type == FieldDescriptor.TYPE_STRING:
        yield from (("nudged", nudged), ("emptied", lambda _: ""), ("oversized", lambda v: v + "A" * OVERSIZE))
    elif one.type == FieldDescriptor.TYPE_BYTES:
        yield from _of_bytes()
    elif one.type == FieldDescriptor.TYPE_BOOL:
        yield "negated", lambda v: not v
    elif one.type == FieldDescriptor.TYPE_ENUM:
        values: Any = one.enum_type
        numbers = [entry.number for entry in values.values]
        yield "next", lambda v: numbers[(numbers.index(v) + 1) % len(numbers)] if v in numbers else numbers[0]
        yield "unknown", lambda _: _UNKNOWN_ENUM
    else:
        greatest = _greatest(one.type)
        yield from (("raised", lambda v: v + 1 if v < greatest else 1), ("zeroed", lambda _: 0))
        yield "greatest", lambda _: greatest
    if one.full_name in guide.others and guide.others[one.full_name] != value:
        yield "others", lambda _: guide.others[one.full_name]


def _of_bytes() -> Iterator[tuple[str, Nudge]]:
    yield "flipped", lambda v: bytes([v[0] ^ 1]) + v[1:] if v else b"\x01"
    yield "last-flipped", lambda v: v[:-1] + bytes([v[-1] ^ 0x80]) if v else b"\x80"
    yield "shortened", lambda v: v[:-1]
    yield "emptied", lambda _: b""
    yield "oversized", lambda v: v + b"A" * OVERSIZE


def _greatest(kind: int) -> int:
    if kind in _UNSIGNED_32:
        return (1 << 32) - 1
    if kind in _UNSIGNED_64:
        return (1 << 64) - 1
    return (1 << 31) - 1 if kind in _SIGNED_32 else (1 << 63) - 1


def _copy(value: T) -> T:
    if not isinstance(value, Message):
        return value
    copied = type(value)()
    copied.CopyFrom(value)
    return copied


def _set(name: str, change: Nudge) -> Callable[[Message], Message]:
    def edit(message: Message) -> Message:
        setattr(message, name, change(getattr(message, name)))
        return message

    return edit


def _at(name: str, inner: Callable[[Any], Any]) -> Callable[[Message], Message]:
    def edit(message: Message) -> Message:
        part = getattr(message, name)
        changed = inner(_copy(part))
        if changed != part:
            part.CopyFrom(changed)
        return message

    return edit


def _element(name: str, number: int, inner: Callable[[Any], Any]) -> Callable[[Message], Message]:
    return _listed(name, _replacing(number, lambda part: inner(_copy(part))))


def _replacing(number: int, change: Nudge) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [change(value) if n == number else value for n, value in enumerate(values)]


def _listed(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Message], Message]:
    def edit(message: Message) -> Message:
        changed = change([_copy(value) for value in getattr(message, name)])
        message.ClearField(name)
        getattr(message, name).extend(changed)
        return message

    return edit


def _kept(number: int, *, times: int) -> Callable[[list[Any]], list[Any]]:
    return lambda values: values[:number] + [values[number]] * times + values[number + 1 :]


def _swapped(number: int) -> Callable[[list[Any]], list[Any]]:
    return lambda v: [*v[: number - 1], v[number], v[number - 1], *v[number + 1 :]]


def _cleared(message: Message, name: str) -> Message:
    message.ClearField(name)
    return message


def _added(message: Message, name: str) -> Message:
    getattr(message, name).SetInParent()
    return message


def _appended(message: Message, one: FieldDescriptor) -> Message:
    values = getattr(message, one.name)
    if one.message_type is not None:
        values.add()
    else:
        values.append({FieldDescriptor.TYPE_STRING: "x", FieldDescriptor.TYPE_BYTES: b"x"}.get(one.type, 1))
    return message


def _with_unknown_field(message: Message) -> Message:
    message.MergeFromString(_UNKNOWN_FIELD)
    return message


def _through(read: Callable[[bytes], Any], edit: Callable[[Any], Any], write: Callable[[Any], bytes]) -> Nudge:
    return lambda data: write(edit(read(data)))


def _serialised(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
