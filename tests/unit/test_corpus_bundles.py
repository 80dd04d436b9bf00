"""The corpus of bad bundles, S1 to S15 and S25: lists of files that no node believes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from hansa.contract.digests import bundle_listing, canonical
from hansa.contract.errors import HansaError
from hansa.contract.listing import parse_listing
from tests.support.corpus import Entry, Memory, check_words, entries, made

GOOD = {"Snakefile": b"rule all: ...\n", "manifest.json": b"{}"}


@pytest.mark.parametrize("entry", entries("bundles"))
def test_a_bad_list_of_files_is_refused(entry: Entry) -> None:
    data, memory = listing_of(entry.input), Memory()
    with pytest.raises(HansaError) as caught:
        parse_listing(data)
    assert caught.value.reason == entry.expect["reason"]
    check_words(caught.value.public)
    memory.check()


def test_the_same_list_without_a_fault_is_taken() -> None:
    assert set(parse_listing(bundle_listing(GOOD))) == set(GOOD)
    assert parse_listing(listing([entry("Snakefile"), entry("manifest.json")]))


def entry(path: str, **changes: Any) -> dict[str, Any]:
    return {"path": path, "sha256": hashlib.sha256(b"").hexdigest(), "size": 0, **changes}


def listing(files: list[dict[str, Any]]) -> bytes:
    return canonical({"v": 1, "files": files})


def listing_of(recipe: Any) -> bytes:
    if "bytes" in recipe:
        return bytes(made(recipe["bytes"]))
    if "spaces" in recipe:
        return json.dumps({"files": [entry("manifest.json")], "v": 1}).encode()
    if "without_manifest" in recipe:
        return listing([entry("Snakefile")])
    if "file" in recipe:
        return listing([entry("Snakefile", **recipe["file"]), entry("manifest.json")])
    if "many" in recipe:
        return listing([entry(f"f{number:05}") for number in range(recipe["many"])])
    paths = recipe.get("paths") or [recipe["path"]]
    files = [entry(path) for path in paths]
    # In order where the order is not the fault.
    in_order = paths == ["z.py", "a.py"]
    found = [*files, entry("manifest.json")]
    return listing(found if in_order else sorted(found, key=lambda file: str(file["path"])))
