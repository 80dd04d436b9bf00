"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source_tree import ROOT, imported, name, source_files, tree_of

pytestmark = pytest.mark.slow

# Where messages of the wire may be named; beyond, there are domain values.
WIRE_ROOMS = frozenset({"api", "link", "cli", "sdk", "contract"})
# The composition root binds servicers to servers; the two clients make one call each.
WIRE_FILES = frozenset({"coordinator/bootstrap.py", "node_agent/keys/enrolment.py"})
PURE = (
    "hansa.contract",
    "hansa.statistics",
    "coordinator.domain",
    "node_agent.disclosure",
    "node_agent.policy.admission",
)


def test_the_import_contracts_are_kept() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_wire_messages_stay_at_the_edges() -> None:
    strays = {
        name(path): sorted({module for module in imported(path) if module.startswith("hansa.v1")})
        for path in source_files()
        if any(module.startswith("hansa.v1") for module in imported(path))
        and not WIRE_ROOMS & set(path.relative_to(ROOT).parts)
    }
    assert {path for path in strays if path not in WIRE_FILES} == set(), strays


def test_code_that_leaves_an_edge_takes_no_message_with_it() -> None:
    root = ROOT / "coordinator/bootstrap.py"
    if root.exists():
        assert all("_pb2_grpc" in module for module in imported(root) if module.startswith("hansa.v1"))


@pytest.mark.parametrize("package", PURE)
def test_pure_code_loads_without_anything_that_does_io(package: str) -> None:
    """Held against what is really loaded, for a library may bring another."""
    if not (ROOT / "proto" / package.replace(".", "/")).exists() and not any(
        (ROOT / f"{package.replace('.', '/')}{end}").exists() for end in ("", ".py")
    ):
        pytest.skip("not there yet")
    code = f"""
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
    importlib.import_module({package!r} + "." + module.name)
print(*sorted({{name.split(".")[0] for name in sys.modules}} & {{
    "grpc", "sqlalchemy", "alembic", "celery", "kombu", "redis", "snakemake", "httpx", "starlette", "uvicorn", "psycopg"
}}))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.returncode) == ("", 0), run.stderr


def test_workers_load_without_grpc() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "node_agent/execution").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; sys.exit('grpc' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_proto_is_a_source_root_and_no_package() -> None:
    # As a package it would shadow proto-plus.
    assert not (ROOT / "proto/__init__.py").exists()


def test_only_the_rule_says_that_a_summary_is_cleared() -> None:
    makers = {"Cleared": "node_agent/disclosure/allele_counts.py", "ReleasedSummary": "node_agent/airlock/released.py"}
    for proof, maker in makers.items():
        callers = {name(path) for path in source_files() if _calls(path, proof)}
        assert callers <= {maker}, proof


def _calls(path: Path, class_name: str) -> bool:
    return any(
        isinstance(node, ast.Call)
        and (node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")) == class_name
        for node in ast.walk(tree_of(path))
    )
