"""What the sandbox sends to the runner is a request in order, or refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_hansa.channel import ChannelError, RuleRequest, parse_request

_COMMANDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
_REQUESTS = st.builds(
    RuleRequest,
    number=st.integers(1, 1000),
    rule=st.text(st.characters(exclude_categories=["Cs"]), max_size=256),
    threads=st.integers(1, 64),
    command=_COMMANDS,
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(request=_REQUESTS)
def test_a_request_arrives_as_it_was_sent(request: RuleRequest) -> None:
    assert parse_request(json.dumps(asdict(request)).encode(), request.number) == request


@given(request=_REQUESTS, expected=st.integers(1, 1000))
def test_a_request_out_of_order_is_refused(request: RuleRequest, expected: int) -> None:
    if request.number != expected:
        with pytest.raises(ChannelError):
            parse_request(json.dumps(asdict(request)).encode(), expected)


@given(line=st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_else_arrives_is_refused_as_such(line: bytes) -> None:
    with pytest.raises(ChannelError):
        parse_request(line, 1)


@given(request=_REQUESTS, name=st.sampled_from(["number", "rule", "threads", "command"]), value=_JSON)
def test_a_field_of_another_type_is_refused(request: RuleRequest, name: str, value: object) -> None:
    fields = asdict(request)
    if type(fields[name]) is not type(value):
        with pytest.raises(ChannelError):
            parse_request(json.dumps(fields | {name: value}).encode(), request.number)
