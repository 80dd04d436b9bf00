"""The list of defences speaks of code and tests that are there."""

from __future__ import annotations

import ast

import pytest

from tests.mutation.defences import ROOT, Defence, read_defences
from tests.support.source_tree import tree_of

DEFENCES = read_defences()
MOST_NAMED_ALIKE = 1


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(DEFENCES) >= 40
    assert len({defence.id for defence in DEFENCES}) == len(DEFENCES)


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.id)
def test_a_defence_stands_once_and_its_test_exists(defence: Defence) -> None:
    text = (ROOT / defence.file).read_text(encoding="utf-8")
    assert defence.removed_from(text) != text
    ast.parse(defence.removed_from(text))
    functions = [node.name for node in ast.walk(tree_of(ROOT / defence.test_file)) if hasattr(node, "name")]
    assert functions.count(defence.test_function) == MOST_NAMED_ALIKE
