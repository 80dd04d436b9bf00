"""The corpus of what a run may leave where its summary was due, S24: nothing of it leaves."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from hansa.contract.errors import RunReason
from node_agent.execution.collector import OutputError, collect
from tests.support.corpus import Entry, Memory, entries_of

NAME = "summary.json"
LIMIT = 1000
SECRET = '{"secret": "NA12878"}'
NOBODY = 65534
RACES = 300
ENTRIES = entries_of("outputs")


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one.expect["reason"] != "NO_SECRET"], ids=str)
def test_a_bad_output_is_refused_for_its_reason(tmp_path: Path, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, memory = entry.input["kind"], Memory()
    if kind == "grows":
        monkeypatch.setattr(os, "fstat", growing(tmp_path / NAME))
    if kind in ("device", "mode_000") and os.geteuid() != 0:
        pytest.skip("only root makes device files and becomes somebody else; run the tests as root")
    if kind == "mode_000":
        with somebody_elses_folder() as folder:
            refused(folder, entry)
        return
    MAKERS[kind](tmp_path)
    refused(tmp_path, entry)
    memory.check()


def refused(folder: Path, entry: Entry) -> None:
    with pytest.raises(OutputError) as caught:
        collect(folder, LIMIT)
    assert caught.value.reason is RunReason(entry.expect["reason"])
    assert "NA12878" not in str(caught.value)


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one.expect["reason"] == "NO_SECRET"], ids=str)
def test_a_name_that_changes_its_meaning_never_shows_what_it_should_not(tmp_path: Path, entry: Entry) -> None:
    work, outside, stop = tmp_path / "work", tmp_path / "secret", threading.Event()
    work.mkdir()
    outside.write_text(SECRET)
    (work / NAME).write_text("{}")
    racer = threading.Thread(target=swap, args=(work, outside, stop))
    racer.start()
    try:
        for _ in range(RACES):
            try:
                found = collect(work, LIMIT)
            except OutputError:
                continue
            assert "secret" not in str(found)
    finally:
        stop.set()
        racer.join()


def swap(work: Path, outside: Path, stop: threading.Event) -> None:
    """Let the name stand for a file and for a link, in turn."""
    plain, link = work / "a.tmp", work / "b.tmp"
    while not stop.is_set():
        link.symlink_to(outside)
        link.replace(work / NAME)
        plain.write_text("{}")
        plain.replace(work / NAME)


@contextmanager
def somebody_elses_folder() -> Iterator[Path]:
    """Yield a folder with a file of mode 000, as a user who may not read it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / NAME).write_text("{}")
        (folder / NAME).chmod(0)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)


def linked_folder(work: Path) -> None:
    (work / "real").mkdir()
    (work / "real" / "result.json").write_text("{}")
    (work / "out").symlink_to(work / "real")


def hard_link(work: Path) -> None:
    (work / "other").write_text("{}")
    (work / NAME).hardlink_to(work / "other")


def bound_socket(work: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(work, os.O_PATH)
        server.bind(f"/proc/self/fd/{folder}/{NAME}")
        os.close(folder)


def setuid(work: Path) -> None:
    (work / NAME).write_text("{}")
    (work / NAME).chmod(0o4755)


def sparse(size: int) -> Callable[[Path], None]:
    def make(work: Path) -> None:
        with (work / NAME).open("wb") as file:
            file.truncate(size)

    return make


def growing(path: Path) -> Callable[[int], os.stat_result]:
    """Return an ``fstat`` after which the file grows over the limit: the worst moment there is."""
    look = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        found = look(descriptor)
        with path.open("ab") as file:
            file.write(b" " * LIMIT)
        return found

    return fstat


def dangling(work: Path) -> None:
    (work / NAME).symlink_to("/nowhere")


def symlink(work: Path) -> None:
    (work / "other").write_text(SECRET)
    (work / NAME).symlink_to(work / "other")


MAKERS: Mapping[str, Callable[[Path], object]] = {
    "symlink": symlink,
    "dangling": dangling,
    "hard_link": hard_link,
    "fifo": lambda work: os.mkfifo(work / NAME),
    "device": lambda work: os.mknod(work / NAME, 0o20600, os.makedev(1, 5)),
    "folder": lambda work: (work / NAME).mkdir(),
    "sparse": sparse(1 << 40),
    "hundred_mb": sparse(100 << 20),
    "setuid": setuid,
    "socket": bound_socket,
    "grows": lambda work: (work / NAME).write_text("{}"),
    "parent_link": linked_folder,
    "binary": lambda work: (work / NAME).write_bytes(b"\xff\xfe"),
}
