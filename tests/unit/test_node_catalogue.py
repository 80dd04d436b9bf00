from __future__ import annotations

import json
from pathlib import Path

from hansa.contract.digests import bundle_digest
from node_agent.catalogue import analysis_folders, installed_analyses, shipped_analyses
from tests.support.agent import MANIFEST


def write_bundle(folder: Path, title: str = "t") -> dict[str, bytes]:
    files = {"manifest.json": json.dumps({**MANIFEST, "title": title}).encode(), "Snakefile": b"rule all: input: []\n"}
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def test_an_analysis_is_found_under_its_name_version_and_digest(tmp_path: Path) -> None:
    files = write_bundle(tmp_path / "one")
    (tmp_path / "one" / "tests").mkdir()
    (tmp_path / "one" / "tests" / "expected.json").write_text("{}")
    found = installed_analyses([tmp_path])
    assert list(found) == ["allele-frequency@1.0"]
    analysis = found["allele-frequency@1.0"]
    assert analysis.digest == bundle_digest(files)
    assert analysis.folder == tmp_path / "one"


def test_a_broken_bundle_does_not_hide_the_others(tmp_path: Path) -> None:
    write_bundle(tmp_path / "good")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    write_bundle(tmp_path / "linked")
    (tmp_path / "linked" / "more").symlink_to("/etc/passwd")
    found = installed_analyses([tmp_path])
    assert [analysis.folder.name for analysis in found.values()] == ["good"]


def test_an_own_bundle_does_not_take_the_place_of_a_shipped_one(tmp_path: Path) -> None:
    write_bundle(tmp_path / "shipped" / "one")
    write_bundle(tmp_path / "own" / "one", title="another")
    found = installed_analyses([tmp_path / "shipped", tmp_path / "own"])
    assert found["allele-frequency@1.0"].manifest.title == "t"


def test_a_missing_folder_holds_no_analyses(tmp_path: Path) -> None:
    assert installed_analyses([tmp_path / "missing"]) == {}


def test_what_hansa_ships_is_looked_for_first(tmp_path: Path) -> None:
    assert list(analysis_folders(tmp_path)) == [shipped_analyses(), tmp_path]
    assert list(analysis_folders(None)) == [shipped_analyses()]
