"""Every bad input of the list has an entry, and what cannot be put in here still cannot."""

from __future__ import annotations

import ast
import json
from importlib import import_module

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from hansa.contract.job import JobSpec
from tests.support.corpus import FOLDER, Entry, entries_of
from tests.support.source_tree import ROOT, imported, source_files, tree_of

pytestmark = pytest.mark.slow

SERVICES = ("admin", "catalogue", "enrolment", "job", "node", "trust")
KINDS = {FieldDescriptor.TYPE_DOUBLE: "double", FieldDescriptor.TYPE_FLOAT: "float"}


def layers() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def test_every_number_of_the_list_has_an_entry() -> None:
    found = {entry.id for layer in layers() for entry in entries_of(layer)}
    wanted = {f"{group}{number}" for group, last in (("G", 20), ("S", 25), ("U", 13)) for number in range(1, last + 1)}
    assert wanted - found == set()
    assert found - wanted == set()


def test_every_layer_has_a_runner() -> None:
    runners = " ".join(path.read_text() for path in (ROOT / "tests").rglob("test_corpus_*.py"))
    assert [layer for layer in layers() if f'"{layer}")' not in runners] == []


def test_no_two_entries_of_a_layer_have_one_name() -> None:
    for layer in layers():
        names = [str(entry) for entry in entries_of(layer)]
        assert sorted(set(names)) == sorted(names), layer
        assert json.loads((FOLDER / f"{layer}.json").read_text())["about"]


@pytest.mark.parametrize("entry", entries_of("elsewhere"), ids=str)
def test_a_test_that_stands_for_an_entry_is_there(entry: Entry) -> None:
    file, _, name = entry.expect["test"].partition("::")
    functions = [node.name for node in ast.walk(tree_of(ROOT / file)) if hasattr(node, "name")]
    assert name in functions


@pytest.mark.parametrize("entry", entries_of("absent"), ids=str)
def test_what_cannot_be_put_in_still_cannot(entry: Entry) -> None:
    assert entry.expect["why"]
    fields = [field for message in messages() for field in message.fields]
    kinds = {KINDS.get(field.type, "") for field in fields} | {
        "map" for field in fields if field.message_type is not None and field.message_type.GetOptions().map_entry
    }
    assert kinds.isdisjoint(entry.input.get("protobuf_types", ()))
    names = {field.name for field in fields}
    assert names.isdisjoint(entry.input.get("protobuf_names", ()))
    assert set(JobSpec.model_fields).isdisjoint(entry.input.get("job_fields", ()))
    modules = {module for path in source_files() for module in imported(path)}
    assert modules.isdisjoint(entry.input.get("modules", ()))


def messages() -> list[Descriptor]:
    found: list[Descriptor] = []
    for stem in ("types", *(f"{service}_service" for service in SERVICES)):
        waiting = list(import_module(f"hansa.v1.{stem}_pb2").DESCRIPTOR.message_types_by_name.values())
        while waiting:
            found.append(waiting.pop())
            waiting += found[-1].nested_types
    return found
