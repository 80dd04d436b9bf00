"""The operator's commands as processes against a real coordinator."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.catalogue_answers import MANIFEST
from tests.support.coordinator_process import profile_of, serving_coordinator
from tests.support.hansa_command import hansa

pytestmark = pytest.mark.slow


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Path]:
    async with serving_coordinator(tmp_path) as profile:
        yield profile


async def test_a_person_who_is_added_may_ask_but_not_operate(operator: Path, tmp_path: Path) -> None:
    await hansa("key", "create", tmp_path / "ada", profile=operator)
    add = ("admin", "person", "add", "ada", "--role", "researcher", "--key", tmp_path / "ada.pub")
    added = await hansa(*add, "--output", "json", profile=operator)
    again = await hansa(*add, "--output", "json", profile=operator)
    assert (added.code, added.document["role"]) == (0, "researcher")
    assert again.document == added.document
    listed = await hansa("admin", "person", "list", "--output", "json", profile=operator)
    assert {one["name"] for one in listed.document["persons"]} == {"olga", "ada"}

    ada = profile_of("ada", tmp_path / "ada", operator)
    assert "There is no node." in (await hansa("nodes", "list", profile=ada)).out
    refused = await hansa("admin", "person", "list", profile=ada)
    assert (refused.code, refused.reason) == (1, "PERMISSION_DENIED")
    audit = await hansa("admin", "audit", "list", "--output", "json", profile=operator)
    assert all(entry["actor"] for entry in audit.document["entries"])


async def test_an_analysis_is_published_once_and_found(operator: Path, tmp_path: Path) -> None:
    folder = tmp_path / "analysis"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "Snakefile").write_text("rule all: ...")
    publish = ("admin", "analysis", "publish", folder)
    published = await hansa(*publish, "--output", "json", profile=operator)
    assert (published.code, published.err) == (0, "")
    assert (await hansa(*publish, profile=operator)).code == 0
    (folder / "Snakefile").write_text("rule all: other")
    changed = await hansa(*publish, profile=operator)
    assert (changed.code, changed.reason) == (1, "ANALYSIS_EXISTS")
    shown = await hansa("analyses", "show", "allele-frequency", "--output", "json", profile=operator)
    assert shown.document["digest"] == published.document["digest"]


async def test_a_node_is_invited_with_a_token_alone_on_stdout(operator: Path) -> None:
    invited = await hansa("admin", "node", "invite", "FI", "--valid", "10m", profile=operator)
    assert (invited.code, len(invited.out.split())) == (0, 1)
    assert invited.out.startswith("hansa1.FI.")
    assert "Valid until" in invited.err
    unknown = await hansa("admin", "node", "confirm", "ES", "--yes", profile=operator)
    assert (unknown.code, unknown.reason) == (1, "NODE_UNKNOWN")
    early = await hansa("admin", "node", "confirm", "FI", "--yes", profile=operator)
    assert (early.code, early.reason) == (1, "NODE_STATE_CONFLICT")
    wrong = await hansa("admin", "node", "invite", "not a name", profile=operator)
    assert (wrong.code, wrong.reason) == (1, "NODE_INVALID")
