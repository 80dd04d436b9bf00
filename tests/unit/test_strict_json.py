"""JSON that strangers wrote is read in one way or not at all."""

from __future__ import annotations

import json

import pytest

from hansa.contract.errors import HansaError
from hansa.contract.job import parse_job
from hansa.contract.manifest import parse_manifest
from hansa.contract.strict import strict_json
from tests.support.job_world import MANIFEST


def test_what_is_nested_too_deeply_is_refused() -> None:
    assert strict_json(b"[" * 8 + b"]" * 8)
    with pytest.raises(ValueError, match="deep"):
        strict_json(b"[" * 9 + b"]" * 9)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", '{"a": [NaN]}'])
def test_a_number_that_json_does_not_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        strict_json(text.encode())


def test_a_key_that_stands_twice_is_refused_at_any_depth() -> None:
    with pytest.raises(ValueError, match="twice"):
        strict_json(b'{"a": {"b": 1, "b": 1}}')


@pytest.mark.parametrize("data", [b'"\\ud800"', b'"\xff"', b"\xef\xbb\xbf{}", b""])
def test_a_text_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json(data)


@pytest.mark.parametrize("key", ["\x1b[2J", "\x7f", "\u202e", "\n", "\x9b31m"])
def test_no_refusal_repeats_what_a_terminal_would_obey(key: str) -> None:
    value = json.dumps({**MANIFEST, key: 1})
    tag = json.dumps({**MANIFEST, "parameters": {"a": {"type": key}}})
    for read, text in ((parse_manifest, value), (parse_manifest, tag), (parse_job, json.dumps({key: 1}))):
        for raw in (text, text.encode().decode("unicode-escape")):
            with pytest.raises(HansaError) as caught:
                read(raw.encode())
            assert f"{caught.value.public}{caught.value.field}".isascii()
            assert f"{caught.value.public}{caught.value.field}".isprintable()


def test_a_manifest_with_a_key_twice_is_refused() -> None:
    text = json.dumps(MANIFEST).replace('"title"', '"disclosure": "none", "title"')
    with pytest.raises(HansaError):
        parse_manifest(text.encode())
