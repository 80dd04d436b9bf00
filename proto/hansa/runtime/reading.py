"""Reading a message that a stranger made: what protobuf lets pass and Hansa does not.

Protobuf keeps fields that nobody declared, takes any number for an enum and
makes an object of every two bytes that say so. So fields are counted before
anything is made of them, and values are looked at before anybody uses them.
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from hansa.contract.errors import HansaError, Reason

# The largest message that means something is an inventory of 1,000 datasets with four fields each.
MOST_FIELDS: Final = 10_000

_VARINT_BYTES: Final = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# A database's largest integer.
_MOST: Final = (1 << 63) - 1
_NUL: Final = "\0"

M = TypeVar("M", bound=Message)


def read_message(kind: type[M], data: bytes, *, most_fields: int = MOST_FIELDS) -> M:
    """Return the ``kind`` in ``data``, without the fields that its schema does not know.

    Args:
        kind: the message's class.
        data: as it came.
        most_fields: how many fields it may have, nested ones too.

    Raises:
        HansaError: ``MALFORMED``, it cannot be read, or holds a number or a text
            that no field of ours may have; ``MESSAGE_TOO_LARGE``, more fields
            than ``most_fields``.
    """
    _Scan(most_fields).message(memoryview(data), cast("Descriptor", kind.DESCRIPTOR))
    try:
        message = kind.FromString(data)
    except DecodeError:
        # Without its cause: its text may quote the bytes.
        raise _malformed(log="DecodeError") from None
    message.DiscardUnknownFields()
    _check(message)
    return message


class _Scan:
    """Walks over the wire form and counts, making nothing."""

    def __init__(self, most: int) -> None:
        """Take how many fields there may be."""
        self._left = most

    def message(self, data: memoryview, schema: Descriptor) -> None:
        """Count the fields of a message and of those inside."""
        position = 0
        while position < len(data):
            tag, position = _varint(data, position)
            self._left -= 1
            if self._left < 0:
                raise HansaError(Reason.MESSAGE_TOO_LARGE, log="fields")
            position = self._field(data, position, tag, schema)

    def _field(self, data: memoryview, position: int, tag: int, schema: Descriptor) -> int:
        wire_type = tag & 7
        if wire_type == _VARINT:
            return _varint(data, position)[1]
        if wire_type == _BYTES:
            length, position = _varint(data, position)
            end = position + length
            field = schema.fields_by_number.get(tag >> 3)
            if end <= len(data) and field is not None and field.message_type is not None:
                self.message(data[position:end], field.message_type)
        elif wire_type in (_FIXED64, _FIXED32):
            end = position + (8 if wire_type == _FIXED64 else 4)
        else:
            # Groups, which proto3 has not; a stranger could nest them without end.
            raise _malformed(log="group")
        if end > len(data):
            raise _malformed(log="truncated")
        return end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[position : position + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return value, position + count + 1
    raise _malformed(log="varint")


def _check(message: Message) -> None:
    for field, value in message.ListFields():
        for one in value if field.is_repeated else (value,):
            if field.message_type is not None:
                _check(one)
            elif not _fits(field, one):
                raise _malformed(field=field.name)


def _fits(field: FieldDescriptor, value: Any) -> bool:
    if field.enum_type is not None:
        return value in field.enum_type.values_by_number
    match value:
        case str():
            return _NUL not in value
        case float():
            return math.isfinite(value)
        case int():
            return value <= _MOST
        case _:
            return True


def _malformed(*, field: str = "", log: str = "") -> HansaError:
    return HansaError(Reason.MALFORMED, field=field, log=log)
