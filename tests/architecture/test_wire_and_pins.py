"""The wire: stubs as the protos are, pins that agree, the same shape everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version

import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from packaging.requirements import Requirement
from packaging.version import Version

from hansa.contract.errors import CATALOGUE, Reason
from tests.support.source_tree import ROOT

SERVICES = ("admin", "catalogue", "enrolment", "job", "node", "trust")
# Safe to repeat by what they carry: a token bound to a key, a stream of numbered
# entries, bytes named by their digest, versions that are in force already.
REPEATABLE = frozenset({"Enrol", "Connect", "UploadSummary", "PublishTrust"})
# Entries of a log that only grows: a place and a count are the page.
BY_PLACE = frozenset({"ListAuditLeaves"})


def services() -> list[ServiceDescriptor]:
    files = [import_module(f"hansa.v1.{service}_service_pb2").DESCRIPTOR for service in SERVICES]
    return [service for file in files for service in file.services_by_name.values()]


def methods() -> list[MethodDescriptor]:
    return [method for service in services() for method in service.methods]


def test_the_stubs_are_what_the_protos_give() -> None:
    run = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_every_service_file_is_known_here() -> None:
    found = {path.stem.removesuffix("_service") for path in (ROOT / "proto/hansa/v1").glob("*_service.proto")}
    assert found == set(SERVICES)


def test_every_method_has_a_policy_and_no_policy_is_left_over() -> None:
    policy = pytest.importorskip("coordinator.api.method_policy").METHOD_POLICY
    assert set(policy) == {f"/{method.containing_service.full_name}/{method.name}" for method in methods()}


def test_every_method_has_messages_of_its_own() -> None:
    for method in methods():
        if method.name == "Connect":  # one stream of frames each way
            continue
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"


def test_every_change_can_be_repeated_and_every_list_has_pages() -> None:
    for method in methods():
        fields = set(method.input_type.fields_by_name)
        if method.name in BY_PLACE:
            assert {"start", "limit"} <= fields, method.name
        elif method.name.startswith("List"):
            assert {"page_size", "page_token"} <= fields, method.name
            assert "next_page_token" in method.output_type.fields_by_name
        elif not method.name.startswith(("Get", "Watch", "Prove")) and method.name not in REPEATABLE:
            assert "request_id" in fields, method.name


def test_every_enum_begins_with_unspecified() -> None:
    for service in SERVICES:
        file = import_module(f"hansa.v1.{service}_service_pb2").DESCRIPTOR
        for descriptor in (file, *file.dependencies):
            if descriptor.package == "hansa.v1":
                enums = [*descriptor.enum_types_by_name.values()]
                enums += [e for m in descriptor.message_types_by_name.values() for e in m.enum_types]
                assert all(enum.values_by_number[0].name.endswith("_UNSPECIFIED") for enum in enums)


def requirements(extra: str = "") -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {(parsed := Requirement(line)).name: parsed for line in lines}


def test_the_generators_are_pinned_and_the_runtimes_are_no_older() -> None:
    dev, run = requirements("dev"), requirements()
    pins = {name: re.fullmatch(r"==([0-9.]+)", str(dev[name].specifier)) for name in ("grpcio-tools", "mypy-protobuf")}
    assert all(pins.values())
    for name, pin in pins.items():
        assert pin is not None
        assert version(name) == pin[1]
    floor = {name: Version(str(run[name].specifier).removeprefix(">=")) for name in ("grpcio", "protobuf")}
    stub = (ROOT / "proto/hansa/v1/types_pb2.py").read_text()
    grpc_stub = (ROOT / "proto/hansa/v1/job_service_pb2_grpc.py").read_text()
    protobuf = re.search(r"Protobuf Python Version: ([0-9.]+)", stub)
    grpcio = re.search(r"GRPC_GENERATED_VERSION = '([0-9.]+)'", grpc_stub)
    assert protobuf is not None
    assert grpcio is not None
    assert floor == {"grpcio": Version(grpcio[1]), "protobuf": Version(protobuf[1])}


def test_every_reason_has_a_code_and_words_for_people() -> None:
    assert set(CATALOGUE) == set(Reason)
    for reason, entry in CATALOGUE.items():
        assert reason.value == reason.name
        assert entry.public.endswith((".", "`."))
        assert entry.public[0].isupper()
        assert len(entry.public) < 120
