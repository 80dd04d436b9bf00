"""Names, documents and addresses: what no tool else looks at."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

from tests.support.source_tree import ROOT, name, source_files, tracked_files, tree_of

VAGUE = frozenset({"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"})
TOP_LEVEL = frozenset(
    {
        ".ci",
        ".gitattributes",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "coordinator",
        "deploy",
        "docs",
        "node_agent",
        "proto",
        "pyproject.toml",
        "requirements-uv.lock",
        "requirements.lock",
        "tests",
    }
)
# An index belongs into the settings of who installs, never into the repository.
INDEX = re.compile(
    r"(?:--(?:extra-)?index-url[= ]+\S*://|index-url\s*=|(?:https?://)(?:[\w.-]*\.)?(?:py"
    r"pi\.org|pythonhosted\.org))"
)


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name(path) for path in source_files() if VAGUE & {path.stem, *path.parent.parts}] == []


def test_the_top_level_is_the_one_agreed_on() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked_files()} <= TOP_LEVEL


def test_no_file_names_a_package_index() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if INDEX.search(text):
            found.append(name(path))
    assert found == []


def test_every_lock_has_hashes() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text()
        pins = re.findall(r"^[a-z0-9][\w.\[\]-]*==", text, re.MULTILINE)
        assert pins
        assert text.count("--hash=sha256:") >= len(pins)


def test_every_public_name_is_documented() -> None:
    """As ruff reads it: modules, classes, functions and methods, in the Google style."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--select",
            "D",
            "--ignore",
            "D105,D107,D203,D213",
            "coordinator",
            "node_agent",
            "proto/hansa",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def test_the_three_commands_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"hansa", "hansa-coordinator", "hansa-node"}
    for target in scripts.values():
        module = target.partition(":")[0].replace(".", "/")
        assert (ROOT / f"{module}.py").exists() or (ROOT / "proto" / f"{module}.py").exists()


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_test_waits_by_the_clock() -> None:
    # A condition is waited for; a duration is a guess.
    sleeping = [
        f"{name(path)}:{node.lineno}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
    ]
    assert sleeping == []
