"""The wire only grows: nothing that ``wire.json`` remembers may be gone or mean something else.

After adding to the protos, run this file as a program to remember the new
parts: ``python tests/contract/test_wire_compatibility.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor

from hansa.contract.errors import Reason, RunReason

MEMORY = Path(__file__).with_name("wire.json")
FILES = ("types", "admin_service", "catalogue_service", "enrolment_service", "job_service", "node_service")


def _messages(messages: Any) -> Iterator[Descriptor]:
    for message in messages:
        yield message
        yield from _messages(message.nested_types)


def _enum(enum: EnumDescriptor) -> dict[str, str]:
    return {f"{enum.full_name}.{value.name}": str(value.number) for value in enum.values}


def on_the_wire() -> dict[str, str]:
    """Return what each name on the wire means today."""
    found: dict[str, str] = {}
    for stem in FILES:
        file = import_module(f"hansa.v1.{stem}_pb2").DESCRIPTOR
        for message in _messages(file.message_types_by_name.values()):
            for field in message.fields:
                composed = field.message_type or field.enum_type
                kind = composed.full_name if composed is not None else field.type
                many = "repeated " if field.is_repeated else ""
                found[field.full_name] = f"{field.number} {many}{kind}"
            for enum in message.enum_types:
                found |= _enum(enum)
        for enum in file.enum_types_by_name.values():
            found |= _enum(enum)
        for service in file.services_by_name.values():
            for method in service.methods:
                streams = f"{method.client_streaming:d}{method.server_streaming:d}"
                found[method.full_name] = f"{method.input_type.full_name} {method.output_type.full_name} {streams}"
    return found


def reasons() -> list[str]:
    """Return every reason that clients may have written tests against."""
    return sorted({*Reason, *RunReason})


def test_nothing_on_the_wire_is_gone_or_means_something_else() -> None:
    memory, today = json.loads(MEMORY.read_text())["wire"], on_the_wire()
    assert {name: (meaning, today.get(name)) for name, meaning in memory.items() if today.get(name) != meaning} == {}


def test_no_reason_is_gone() -> None:
    assert set(json.loads(MEMORY.read_text())["reasons"]) <= set(reasons())


if __name__ == "__main__":
    MEMORY.write_text(json.dumps({"reasons": reasons(), "wire": on_the_wire()}, indent=1, sort_keys=True) + "\n")
