"""The source as the architecture tests read it: files, trees, bodies of functions."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("coordinator", "node_agent", "proto/hansa")
_GENERATED = ("proto/hansa/v1/", "/migrations/")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def source_files() -> tuple[Path, ...]:
    """Return what people wrote: without stubs, migrations and the analyses' own tests."""
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    return tuple(sorted(path for path in files if not any(part in f"/{name(path)}" for part in _GENERATED)))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, Function):
            yield node


def body_lines(function: Function) -> int:
    """Return how many lines the body has, its docstring left out."""
    statements = function.body
    first = statements[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        statements = statements[1:]
    if not statements:
        return 0
    return (statements[-1].end_lineno or statements[-1].lineno) - statements[0].lineno + 1


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of what a file imports, wherever in it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tracked_files() -> list[Path]:
    """Return the files that are in the repository or would be with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    return [path for entry in listed.split("\0") if entry and (path := ROOT / entry).is_file()]
