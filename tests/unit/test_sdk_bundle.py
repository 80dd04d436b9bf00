import json
import os
from pathlib import Path

import pytest

from hansa.contract.digests import bundle_digest
from hansa.contract.errors import HansaError, Reason
from hansa.sdk.bundle import load_bundle, read_bundle
from tests.support.catalogue_answers import MANIFEST


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "Snakefile").write_text("rule all: ...")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "count.py").write_text("print()")
    return tmp_path


def test_a_bundle_s_digest_is_that_of_its_files(folder: Path) -> None:
    bundle = load_bundle(folder)
    files = {path: (folder / path).read_bytes() for path in ("manifest.json", "Snakefile", "scripts/count.py")}
    assert bundle.digest == bundle_digest(files)
    assert bundle.manifest.name == "allele-frequency"
    assert bundle.manifest_bytes == files["manifest.json"]


def test_tests_and_what_python_leaves_behind_do_not_count(folder: Path) -> None:
    before = load_bundle(folder).digest
    for name in ("tests", "__pycache__", "scripts/__pycache__"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("x")
    assert load_bundle(folder).digest == before


@pytest.mark.parametrize("name", ["link", "pipe", ".hidden", "-rf", "a b", "sm\u00f8r"])
def test_a_bundle_of_anything_but_plain_files_with_plain_names_is_refused(folder: Path, name: str) -> None:
    if name == "link":
        (folder / name).symlink_to("/etc/passwd")
    elif name == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).write_text("x")
    with pytest.raises(HansaError) as caught:
        read_bundle(folder)
    assert caught.value.reason is Reason.FILE_INVALID


@pytest.mark.parametrize("name", ["manifest.json", "Snakefile"])
def test_a_bundle_that_lacks_a_part_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(HansaError) as caught:
        load_bundle(folder)
    assert caught.value.reason is Reason.MANIFEST_INVALID


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HansaError) as caught:
        load_bundle(tmp_path / "none")
    assert caught.value.reason is Reason.FILE_INVALID
