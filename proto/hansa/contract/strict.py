"""Strict reading of JSON that strangers wrote: what can be read in two ways is refused."""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from hansa.contract.errors import HansaError, Reason

_MAX_DEPTH: Final = 8
_MOST_WORDS: Final = 300
_BRACKET: Final = re.compile(r"[\[\]{}]")

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """A model with no unknown keys and no changes after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def pattern(text: str) -> StringConstraints:
    """Return the constraint that a whole text matches; pydantic searches, it does not match the whole."""
    return StringConstraints(pattern=f"^(?:{text})$")


def strict_json(data: bytes, max_depth: int = _MAX_DEPTH) -> Any:
    """Return the JSON value in ``data``.

    Raises:
        ValueError: not UTF-8 JSON, a key stands twice, a number is not finite,
            a string is no text (half of a surrogate pair), or the nesting is
            deeper than ``max_depth``.
    """
    text = data.decode("utf-8")
    if _depth(text) > max_depth:
        raise ValueError("nested too deeply")
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    if "\\u" in text:
        # What UTF-8 cannot write, no database or message could hold either.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def parse_strict(model: type[M], data: bytes, *, reason: Reason, what: str, most_bytes: int) -> M:
    """Return ``data`` as a ``model``.

    Raises:
        HansaError: ``reason``, naming the first field at fault.
    """
    if len(data) > most_bytes:
        raise HansaError(reason, f"The {what} is over {most_bytes} bytes.", field="payload")
    try:
        return model.model_validate(strict_json(data))
    except ValidationError as error:
        raise refused(error, reason=reason, what=what) from error
    except (ValueError, RecursionError) as error:
        raise HansaError(reason, f"The {what} is not strict JSON.", field="payload") from error


def refused(error: ValidationError, *, reason: Reason, what: str) -> HansaError:
    """Return the refusal that names the first field at fault, in plain ASCII.

    A key or a tag that nobody declared may be any text, also one that a
    terminal would obey.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    field = _plain(".".join(str(part) for part in first["loc"]))[:100] or what
    words = _plain(first["msg"].removeprefix("Value error, "))[:_MOST_WORDS]
    return HansaError(reason, f"{field}: {words}", field=field)


def _plain(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else ascii(letter)[1:-1] for letter in text)


def to_bytes(model: BaseModel) -> bytes:
    """Return ``model`` as the bytes that are signed. Called once, by who signs."""
    return json.dumps(model.model_dump(mode="json"), separators=(",", ":"), sort_keys=True).encode()


def _depth(text: str) -> int:
    """Return an upper bound of the nesting (brackets in strings count too)."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
