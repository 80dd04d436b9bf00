"""Nothing grows past what one head can hold (docs: the budget of the style guide)."""

from __future__ import annotations

import math

from tests.support.source_tree import ROOT, body_lines, functions, name, source_files

FILE_LINES = 500
BODY_LINES = 60
BODY_LINES_P95 = 30
POSITIONAL = 5


def test_no_file_is_over_500_lines() -> None:
    files = [*source_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "deploy").rglob("*.py")]
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths
    assert {path: length for path, length in lengths.items() if length > FILE_LINES} == {}


def test_no_function_body_is_over_60_lines() -> None:
    long = {
        f"{name(path)}:{function.lineno} {function.name}": body_lines(function)
        for path in source_files()
        for function in functions(path)
        if body_lines(function) > BODY_LINES
    }
    assert long == {}


def test_nineteen_bodies_in_twenty_are_at_most_30_lines() -> None:
    bodies = sorted(body_lines(function) for path in source_files() for function in functions(path))
    assert bodies[math.ceil(0.95 * len(bodies)) - 1] <= BODY_LINES_P95


def test_no_function_takes_more_than_five_positional_parameters() -> None:
    many = {
        f"{name(path)}:{function.lineno} {function.name}"
        for path in source_files()
        if "cli" not in path.parts  # click fills those by name
        for function in functions(path)
        if len([a for a in (*function.args.posonlyargs, *function.args.args) if a.arg not in ("self", "cls")])
        > POSITIONAL
    }
    assert many == set()


def test_every_parameter_and_result_is_typed() -> None:
    untyped = {
        f"{name(path)}:{function.lineno} {function.name}"
        for path in source_files()
        for function in functions(path)
        if (function.returns is None and function.name != "__init__")
        or any(
            argument.annotation is None
            for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
            if argument.arg not in ("self", "cls")
        )
    }
    assert untyped == set()
