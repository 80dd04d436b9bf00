"""The transactions of the production code, found by reading it.

A transaction is a call that hands a function to the store: ``database.run``,
``run_sync``, ``desk.commit``, ``desk.read``, ``calls.read``, ``calls.change``.
The names here are those that ``crash_points.name_of`` gives at run time, so
that what is written down, what stands in the source and what is hit can be
compared.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("coordinator", "node_agent")
# The last word of the receiver, by the method's name; and the place of the function among the arguments.
_DOORS: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {
    "run": (("database", "_database"), 0),
    "run_sync": (("database", "_database"), 0),
    "commit": (("desk", "_desk"), 0),
    "read": (("desk", "_desk", "_calls"), 0),
    "change": (("_calls",), 1),
    "change_by_two": (("_calls",), 2),
}


@dataclass(frozen=True, slots=True)
class Site:
    """One call of a door: where it stands, and what its transaction is called.

    ``name`` is empty where the function is handed through from the caller.
    ``lambda_line`` is where the function stands, if it is one without a name:
    it is then called by its place, and by what it calls where several stand in one place.
    """

    module: str
    place: str
    name: str
    lambda_line: int = 0
    calls: str = ""


@functools.cache
def sites() -> tuple[Site, ...]:
    """Return all transactions of the production code."""
    found: list[Site] = []
    for package in _PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if not {"migrations", "plugins", "analyses"} & set(path.parts):
                found += _Reader(path).sites()
    crowded = Counter(site.name for site in found if site.lambda_line)
    return tuple(
        replace(site, name=f"{site.name}.{site.calls}") if site.lambda_line and crowded[site.name] > 1 else site
        for site in found
    )


def lambda_name(module: str, line: int) -> str:
    """Return the name of the transaction whose function begins at ``line``; where it stands if it is none."""
    names = {(site.module, site.lambda_line): site.name for site in sites() if site.lambda_line}
    return names.get((module, line), f"{module}:{line}")


@dataclass
class _Scope:
    """A function or class that is being read."""

    name: str
    is_class: bool
    # Functions and values that are defined in it, by name.
    functions: set[str] = field(default_factory=set)
    values: dict[str, ast.expr] = field(default_factory=dict)
    arguments: set[str] = field(default_factory=set)


class _Reader(ast.NodeVisitor):
    def __init__(self, path: Path) -> None:
        self.module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        self._tree = ast.parse(path.read_text())
        self._scopes: list[_Scope] = [_Scope("", is_class=False)]
        self._imports: dict[str, str] = {}
        self._found: list[Site] = []

    def sites(self) -> list[Site]:
        self._enter(self._tree.body)
        return self._found

    def _enter(self, body: list[ast.stmt]) -> None:
        scope = self._scopes[-1]
        for node in ast.walk(ast.Module(body, [])):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                scope.values[node.targets[0].id] = node.value
        scope.functions |= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        for statement in body:
            self.visit(statement)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within(_Scope(node.name, is_class=True), node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self._within(_Scope(node.name, is_class=False, arguments={one.arg for one in every}), node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - named by ast

    def _within(self, scope: _Scope, body: list[ast.stmt]) -> None:
        self._scopes.append(scope)
        self._enter(body)
        self._scopes.pop()

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        work = _work_of(node)
        if work is not None:
            line = work.lineno if isinstance(work, ast.Lambda) else 0
            calls = _first_call(work.body) if isinstance(work, ast.Lambda) else ""
            self._found.append(Site(self.module, self._qualified(), self._name(work), line, calls))

    def _qualified(self, depth: int | None = None) -> str:
        return ".".join(scope.name for scope in self._scopes[1:depth])

    def _name(self, work: ast.expr) -> str:
        """Return the name of a transaction's function as it is at run time."""
        match work:
            case ast.Lambda():
                return f"{self.module}.{self._qualified()}"
            case ast.Call(func=ast.Name("partial"), args=[inner, *_]):
                return self._name(inner)
            case ast.Attribute(value=ast.Name("self"), attr=method):
                owner = next(scope for scope in reversed(self._scopes) if scope.is_class)
                return f"{self.module}.{owner.name}.{method}"
            case ast.Name(id=name):
                return self._named(name)
        raise ValueError(f"{self.module}.{self._qualified()}: what is {ast.unparse(work)}?")

    def _named(self, name: str) -> str:
        for depth in range(len(self._scopes), 1, -1):
            scope = self._scopes[depth - 1]
            if name in scope.functions and not scope.is_class:
                return f"{self.module}.{self._qualified(depth)}.{name}"
            if name in scope.values:
                return self._name(scope.values[name])
            if name in scope.arguments:
                return ""
        if name in self._scopes[0].functions:
            return f"{self.module}.{name}"
        return self._imports[name]


def _work_of(node: ast.Call) -> ast.expr | None:
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in _DOORS:
        return None
    receivers, place = _DOORS[node.func.attr]
    if _last_word(node.func.value) not in receivers:
        return None
    return node.args[place]


def _first_call(body: ast.expr) -> str:
    return next((_last_word(node.func) for node in ast.walk(body) if isinstance(node, ast.Call)), "")


def _last_word(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def names() -> Iterator[str]:
    """Yield the names of all transactions, a name that stands twice twice."""
    for site in sites():
        if site.name:
            yield site.name
