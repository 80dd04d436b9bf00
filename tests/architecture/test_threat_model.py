"""The threat model's tables speak of tests that are there, or say that nothing defends."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import pytest

from tests.support.source_tree import ROOT, tree_of

LAST = {"R": 8, "C": 8, "O": 4, "N": 7, "S": 4, "P": 3, "W": 4, "M": 6, "B": 4, "I": 4, "D": 4}
NO_DEFENCE = ("not defended", "later issue")
CELLS = 4
_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


@dataclass(frozen=True)
class Row:
    """An attack, what the documentation says of its defence, and the tests that hold it."""

    id: str
    defence: str
    tests: tuple[tuple[str, str], ...]


def rows() -> list[Row]:
    found = []
    for line in (ROOT / "docs/threat-model.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"[A-Z]\d", cells[0]):
            assert len(cells) == CELLS, line
            found.append(Row(cells[0], cells[2], tuple(_TEST.findall(cells[3]))))
    return found


def test_every_attack_has_exactly_one_row() -> None:
    wanted = [f"{group}{number}" for group, last in LAST.items() for number in range(1, last + 1)]
    assert [row.id for row in rows()] == wanted


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.id)
def test_a_row_names_tests_that_exist_or_says_that_nothing_defends(row: Row) -> None:
    assert row.tests or any(words in row.defence for words in NO_DEFENCE)
    for file, test in row.tests:
        paths = list((ROOT / "tests").rglob(file))
        assert [path.name for path in paths] == [file]
        assert test in {node.name for node in ast.walk(tree_of(paths[0])) if hasattr(node, "name")}, (file, test)
