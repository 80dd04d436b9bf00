"""The crash matrix has every transaction of the production code, and nothing that is none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.support.crash_catalogue import REPOSITORY, sites
from tests.support.crash_journeys import JOURNEYS
from tests.support.crash_matrix import ALSO, APART, READS, WRITES
from tests.support.crash_points import Phase

# Doors that hand on what their callers give them.
_PASSED_ON = {
    "coordinator.api.calls.Calls.read",
    "coordinator.doctor.Examined.ask",
    "coordinator.services.desk.Desk.read",
    "coordinator.services.desk.Desk._commit",
    # What `restore` changes in the store that it puts into place.
    "coordinator.store.backup._import_file",
}
# One answer for one call: named by what the call does.
_ONCE = {"coordinator.api.calls.Calls.change.once", "coordinator.api.calls.Calls.change_by_two.once"}


def test_every_transaction_of_the_source_is_in_the_matrix() -> None:
    found = {site.name for site in sites() if site.name} - _ONCE
    known = set(WRITES) | set(READS) | set(APART)
    assert found - known == set(), "a transaction without a place in the crash matrix"
    assert known - found == set(), "the crash matrix names what there is not"


def test_each_transaction_stands_in_one_list() -> None:
    counted = Counter([*WRITES, *READS, *APART])
    assert [name for name, times in counted.items() if times > 1] == []


def test_only_known_doors_hand_a_transaction_on() -> None:
    assert {f"{site.module}.{site.place}" for site in sites() if not site.name} == _PASSED_ON


def test_no_two_functions_without_a_name_are_called_the_same() -> None:
    counted = Counter(site.name for site in sites() if site.lambda_line)
    assert [name for name, times in counted.items() if times > 1] == []


def test_every_journey_is_taken_and_every_point_has_one() -> None:
    taken = {*WRITES.values(), *(journey for _, journey in ALSO)}
    assert taken == set(JOURNEYS)
    assert {point for point, _ in ALSO} <= set(WRITES)


def test_the_page_about_the_matrix_counts_right() -> None:
    said = (
        f"There are {len(WRITES)} points that write, in {len(Phase)} phases each, and {len(ALSO)} more ways through them; "
        f"{len(READS)} transactions that only read; {len(APART)} that stand apart."
    )
    assert said in Path(REPOSITORY, "docs/explanation/crash-matrix.md").read_text()
