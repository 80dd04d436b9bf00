"""What an execution may begin with: only plain files that finished rules left, as they left them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.execution.resumption import NOTES, carry_over, note_finished


@dataclass
class Executions:
    """The folders of a run's executions."""

    run: Path

    def begin(self, number: int) -> tuple[Path, Path]:
        work, control = self.run / str(number), self.run / f"{number}.ctl"
        work.mkdir()
        control.mkdir()
        return control, work

    def finished(self, *outputs: str) -> tuple[Path, Path]:
        """Return the folders of execution 1, in which a rule has left ``outputs``."""
        control, work = self.begin(1)
        for path in outputs:
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(f"content of {path}")
        note_finished(control, work, outputs)
        return control, work


def taken_over(folders: tuple[Path, Path], max_bytes: int = 1 << 20) -> int:
    return carry_over(*folders, max_bytes=max_bytes)


@pytest.fixture
def executions(tmp_path: Path) -> Executions:
    return Executions(tmp_path)


def test_what_finished_rules_left_is_there_again_and_nothing_else(executions: Executions) -> None:
    control, work = executions.finished("counts.txt", "deep/er/counts.txt")
    note_finished(control, work, ["counts.txt"])
    (work / "half.txt").write_text("of a rule that did not finish")
    new_control, new = executions.begin(2)
    assert taken_over((new_control, new)) >= 2
    assert (new / "deep/er/counts.txt").read_text() == "content of deep/er/counts.txt"
    assert not (new / "half.txt").exists()
    # A copy: what still writes into the old folder does not reach the new one.
    (work / "counts.txt").write_text("late")
    assert (new / "counts.txt").read_text() == "content of counts.txt"


def test_it_is_handed_on_over_executions_that_finished_nothing(executions: Executions) -> None:
    executions.finished("counts.txt")
    assert taken_over(executions.begin(2)) == 1
    executions.begin(3)
    assert taken_over(executions.begin(4)) == 1


def test_the_first_execution_begins_with_nothing(executions: Executions) -> None:
    assert taken_over(executions.begin(1)) == 0


def _is_changed(_work: Path, path: Path) -> None:
    path.write_text("something else")


def _is_a_link(work: Path, path: Path) -> None:
    path.rename(work / "moved")
    path.symlink_to("moved")


def _has_two_names(work: Path, path: Path) -> None:
    os.link(path, work / "second")


def _is_a_fifo(_work: Path, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _lies_behind_a_link(work: Path, path: Path) -> None:
    path.parent.rename(work / "moved")
    path.parent.symlink_to("moved")


def _is_gone(_work: Path, path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [_is_changed, _is_a_link, _has_two_names, _is_a_fifo, _lies_behind_a_link, _is_gone])
def test_what_is_not_what_the_rule_left_is_not_taken_nor_the_rules_other_files(
    executions: Executions, spoil: Callable[[Path, Path], None]
) -> None:
    _, work = executions.finished("first.txt", "folder/second.txt")
    spoil(work, work / "folder" / "second.txt")
    new_control, new = executions.begin(2)
    assert taken_over((new_control, new)) == 0
    assert not [path for path in new.rglob("*") if not path.is_dir()]
    assert not (new_control / NOTES).exists()


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "params.json", ".snakemake/x", "a//b", "./x", "a\0b", ""])
def test_a_sandbox_cannot_name_files_that_are_not_its_own(executions: Executions, path: str) -> None:
    (executions.run / "secret").write_text("x")
    control, work = executions.begin(1)
    (work / "params.json").write_text("{}")
    note_finished(control, work, [path])
    assert not (control / NOTES).exists()


def test_a_note_that_was_cut_off_is_passed_over(executions: Executions) -> None:
    control, work = executions.finished("counts.txt")
    (work / "more.txt").write_text("more")
    note_finished(control, work, ["more.txt"])
    notes = (control / NOTES).read_text()
    (control / NOTES).write_text(notes[:-10])
    assert taken_over(executions.begin(2)) == 1


def test_no_more_is_taken_than_the_scratch_folder_may_hold_nor_more_read_than_a_gibibyte_of_a_rule(
    executions: Executions,
) -> None:
    control, work = executions.finished("counts.txt")
    with (work / "sparse").open("wb") as file:
        file.truncate((1 << 30) + 1)
    note_finished(control, work, ["sparse"])
    assert (control / NOTES).read_text().count("\n") == 1
    assert taken_over(executions.begin(2), max_bytes=5) == 0
    assert carry_over(*executions.begin(3), max_bytes=1 << 20, goes_on=lambda: False) == 0
