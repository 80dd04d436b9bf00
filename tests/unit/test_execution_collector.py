"""The collector takes one plain file out of a folder that it does not trust."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hansa.contract.errors import RunReason
from node_agent.execution.collector import OutputError, collect


def _link(work: Path) -> None:
    (work / "summary.json").symlink_to(work / "other")
    (work / "other").write_text("{}")


def _dangling(work: Path) -> None:
    (work / "summary.json").symlink_to("/nowhere")


def _hard_link(work: Path) -> None:
    (work / "other").write_text("{}")
    (work / "summary.json").hardlink_to(work / "other")


def _fifo(work: Path) -> None:
    os.mkfifo(work / "summary.json")


def _folder(work: Path) -> None:
    (work / "summary.json").mkdir()


def _socket(work: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(work, os.O_PATH)
        server.bind(f"/proc/self/fd/{folder}/summary.json")
        os.close(folder)


def _set_uid(work: Path) -> None:
    (work / "summary.json").write_text("{}")
    (work / "summary.json").chmod(0o4755)


def _device(work: Path) -> None:
    os.mknod(work / "summary.json", 0o20600, os.makedev(1, 5))


def _large(work: Path) -> None:
    (work / "summary.json").write_bytes(b"x" * 101)


def _sparse(work: Path) -> None:
    with (work / "summary.json").open("wb") as file:
        file.truncate(1 << 40)


def _binary(work: Path) -> None:
    (work / "summary.json").write_bytes(b"\xff\xfe")


def _nothing(work: Path) -> None:
    (work / "result.json").write_text("{}")


def _two(work: Path) -> None:
    (work / "summary.json").write_text("{}")
    (work / "Summary-2.JSON").write_text("{}")


def _deeper(work: Path) -> None:
    (work / "summary.json").write_text("{}")
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "summary.json").write_text("{}")


def _elsewhere(work: Path) -> None:
    (work / "my.summary.json").write_text("{}")


def _very_deep(work: Path) -> None:
    (work / "summary.json").write_text("{}")
    (work / "/".join("d" * 20)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_link, RunReason.OUTPUT_KIND),
        (_dangling, RunReason.OUTPUT_KIND),
        (_hard_link, RunReason.OUTPUT_KIND),
        (_fifo, RunReason.OUTPUT_KIND),
        (_folder, RunReason.OUTPUT_KIND),
        (_socket, RunReason.OUTPUT_KIND),
        (_set_uid, RunReason.OUTPUT_KIND),
        (_large, RunReason.OUTPUT_TOO_LARGE),
        (_sparse, RunReason.OUTPUT_TOO_LARGE),
        (_binary, RunReason.SUMMARY_INVALID),
        (_nothing, RunReason.OUTPUT_MISSING),
        (_two, RunReason.OUTPUT_AMBIGUOUS),
        (_deeper, RunReason.OUTPUT_AMBIGUOUS),
        (_elsewhere, RunReason.OUTPUT_MISSING),
        (_very_deep, RunReason.OUTPUT_AMBIGUOUS),
    ],
)
def test_what_is_not_one_plain_summary_is_refused(
    tmp_path: Path, make: Callable[[Path], None], reason: RunReason
) -> None:
    make(tmp_path)
    with pytest.raises(OutputError) as refusal:
        collect(tmp_path, 100)
    assert refusal.value.reason is reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files; run the tests as root")
def test_a_device_is_refused(tmp_path: Path) -> None:
    _device(tmp_path)
    with pytest.raises(OutputError) as refusal:
        collect(tmp_path, 100)
    assert refusal.value.reason is RunReason.OUTPUT_KIND


def test_a_plain_summary_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("ä" * 50)
    assert collect(tmp_path, 100) == "ä" * 50


def test_what_snakemake_keeps_for_itself_is_no_second_summary(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / ".snakemake" / "summary.json").write_text("{}")
    assert collect(tmp_path, 100) == "{}"


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    work, outside = tmp_path / "work", tmp_path / "outside"
    work.mkdir()
    outside.mkdir()
    (outside / "summary.json").write_text("{}")
    (work / "inner").symlink_to(outside)
    (work / "summary.json").write_text("{}")
    assert collect(work, 100) == "{}"
