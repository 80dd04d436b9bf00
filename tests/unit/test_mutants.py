"""The mutants of the evil coordinator are complete: no field of the wire or of a signed file is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from hansa.contract.approval import JobApproval, StandingApproval
from hansa.contract.decision import ReleaseDecision
from hansa.contract.directory import Directory
from hansa.contract.job import JobSpec
from hansa.contract.review import Authorship, Vote
from hansa.contract.statement import Statement
from hansa.v1 import node_service_pb2 as wire
from tests.support.honest_files import EXAMPLES
from tests.support.honest_frames import GUIDE, TO_NODES, TO_RESEARCHERS, answers, answers_of, bodies, frames
from tests.support.json_mutants import covers, json_mutants, schema_paths
from tests.support.mutants import Mutant, all_fields, distinct, message_mutants

MODELS = (JobSpec, Directory, Authorship, Vote, JobApproval, StandingApproval, ReleaseDecision, Statement)


def wire_mutants() -> list[Mutant[Any]]:
    return [mutant for example in (*frames(), *answers()) for mutant in message_mutants(example, GUIDE)]


def test_every_field_that_a_coordinator_sends_has_a_mutant() -> None:
    mutated = {mutant.field for mutant in wire_mutants()}
    kinds = {**answers_of(*TO_NODES, *TO_RESEARCHERS), "command": wire.CommandBody.DESCRIPTOR}

    assert all_fields(*kinds.values()) - mutated == set()


def test_every_answer_of_every_service_has_an_honest_example() -> None:
    shown = {example.DESCRIPTOR.full_name for example in (*frames(), *answers())}

    assert shown == set(answers_of(*TO_NODES, *TO_RESEARCHERS))
    assert {body.WhichOneof("body") for body in bodies()} == {
        field.name for field in wire.CommandBody.DESCRIPTOR.oneofs_by_name["body"].fields
    }
    assert {frame.WhichOneof("frame") for frame in frames()} == {
        field.name for field in wire.CoordinatorFrame.DESCRIPTOR.oneofs_by_name["frame"].fields
    }


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_property_of_a_signed_file_has_a_mutant(model: type[BaseModel]) -> None:
    example = json.loads(EXAMPLES[model])
    mutated = {mutant.path for mutant in json_mutants(example)}

    assert [path for path in sorted(schema_paths(model)) if not covers(mutated, path)] == []


def test_a_mutant_differs_from_the_honest_message_and_leaves_it_as_it_is() -> None:
    for example in (*frames(), *answers()):
        before = example.SerializeToString(deterministic=True)
        mutants = list(message_mutants(example, GUIDE))
        distinct(mutants)
        for mutant in mutants:
            assert mutant.of(example) != example, mutant.id
        assert example.SerializeToString(deterministic=True) == before


def test_there_are_at_least_three_hundred_mutants() -> None:
    on_the_wire = len(wire_mutants())
    in_files = sum(len(list(json_mutants(json.loads(EXAMPLES[model])))) for model in MODELS)

    assert on_the_wire >= 300
    assert on_the_wire + in_files >= 1_000
