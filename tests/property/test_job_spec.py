"""The signed job: read as it was written, or refused."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import (
    ANALYSIS_NAME,
    ANALYSIS_VERSION,
    DATASET_ID,
    FEDERATION_NAME,
    NODE_ID,
    PERSON_NAME,
    PROJECT_NAME,
)
from hansa.contract.job import AnalysisRef, DatasetRef, JobSpec, check_quorum, check_window, parse_job
from hansa.contract.limits import CLOCK_TOLERANCE, JOB_BYTES, MAX_DEADLINE
from hansa.contract.release import ReleaseClass
from hansa.contract.strict import strict_json

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
digests = st.from_regex(r"\Asha256:[0-9a-f]{64}\Z")
moments = st.integers(-(10**9), 10**9).map(lambda seconds: NOW + timedelta(seconds=seconds))


def like(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(rf"\A(?:{pattern})\Z")


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    nodes = draw(st.lists(like(NODE_ID.pattern), min_size=1, max_size=4, unique=True))
    return JobSpec(
        federation=draw(like(FEDERATION_NAME.pattern)),
        directory_version=draw(st.integers(1, 10**6)),
        project=draw(like(PROJECT_NAME.pattern)),
        purpose=draw(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)),
        release_class=draw(st.sampled_from(ReleaseClass)),
        recipient_key=draw(st.none() | st.binary(min_size=32, max_size=32).map(lambda raw: b64encode(raw).decode())),
        passports={node: draw(digests) for node in nodes[:1]},
        job_id=str(draw(st.uuids())),
        nonce=draw(like("[0-9a-f]{32}")),
        submitter=draw(like(PERSON_NAME.pattern)),
        analysis=AnalysisRef(
            name=draw(like(ANALYSIS_NAME.pattern)),
            version=draw(like(ANALYSIS_VERSION.pattern)),
            digest=draw(digests),
        ),
        parameters=draw(st.dictionaries(st.text(max_size=32), st.text(max_size=50), max_size=3)),
        datasets=tuple(
            DatasetRef(node=node, dataset=draw(like(DATASET_ID.pattern)), snapshot=draw(digests)) for node in nodes
        ),
        quorum=draw(st.integers(1, 5)),
        not_before=draw(moments),
        not_after=draw(moments),
    )


def spec(**changes: Any) -> dict[str, Any]:
    value = {
        "v": 1,
        "federation": "demo",
        "directory_version": 3,
        "project": "lactose",
        "job_id": "0192f0c1-0000-7000-8000-000000000000",
        "nonce": "0" * 32,
        "submitter": "ana",
        "analysis": {"name": "allele-frequency", "version": "1.0", "digest": "sha256:" + "0" * 64},
        "parameters": {"variants": "rs7"},
        "datasets": [{"node": "FI", "dataset": "FI-lct", "snapshot": "sha256:" + "1" * 64}],
        "quorum": 1,
        "not_before": NOW.isoformat(),
        "not_after": (NOW + timedelta(hours=1)).isoformat(),
    }
    return {**value, **changes}


def refusal(payload: bytes) -> HansaError:
    with pytest.raises(HansaError) as caught:
        parse_job(payload)
    assert caught.value.reason is Reason.ENVELOPE_INVALID
    # It is put into a message on the wire.
    assert f"{caught.value.public} {caught.value.field}".encode("ascii")
    return caught.value


@given(specs())
def test_a_job_is_read_as_it_was_written(job: JobSpec) -> None:
    assert parse_job(job.to_bytes()) == job
    assert parse_job(job.to_bytes()).to_bytes() == job.to_bytes()


def test_the_example_is_valid() -> None:
    assert parse_job(json.dumps(spec()).encode()).nodes == ("FI",)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"extra": 1}, "extra"),
        ({"federation": "De mo"}, "federation"),
        ({"directory_version": 0}, "directory_version"),
        ({"directory_version": "3"}, "directory_version"),
        ({"project": "../x"}, "project"),
        ({"purpose": "\x1b[2J"}, "purpose"),
        ({"rounds": 2}, "rounds"),
        ({"release_class": "none"}, "release_class"),
        ({"recipient_key": "A" * 43}, "recipient_key"),
        ({"recipient_key": "A" * 42 + "B="}, "recipient_key"),
        ({"passports": {"ES": "sha256:" + "0" * 64}}, "job"),
        ({"passports": {"FI": "x"}}, "passports"),
        ({"\ud800": 1}, ""),
        ({"v": 2}, "v"),
        ({"job_id": "x"}, "job_id"),
        ({"job_id": spec()["job_id"] + "\n"}, "job_id"),
        ({"submitter": "../ana"}, "submitter"),
        ({"quorum": 0}, "quorum"),
        ({"quorum": True}, "quorum"),
        ({"quorum": "1"}, "quorum"),
        ({"datasets": []}, "datasets"),
        ({"datasets": spec()["datasets"] * 2}, "job"),
        ({"not_after": "2026-03-01T12:00:00"}, "not_after"),
        ({"not_after": None}, "not_after"),
        ({"parameters": {"a": 1}}, "parameters"),
        ({"parameters": {"\ud800": "a"}}, "payload"),
        ({"parameters": {"a": "\ud800"}}, "payload"),
        ({"parameters": {"\x1b[2J": 1}}, "parameters"),
        ({"analysis": {**spec()["analysis"], "digest": "md5:0"}}, "analysis.digest"),
    ],
)
def test_a_departure_is_refused_by_the_name_of_its_field(changes: dict[str, Any], field: str) -> None:
    assert refusal(json.dumps(spec(**changes)).encode()).field.startswith(field)


@given(st.data())
def test_a_missing_field_is_refused(data: st.DataObject) -> None:
    value = spec()
    del value[data.draw(st.sampled_from(sorted(set(value) - {"v"})))]
    refusal(json.dumps(value).encode())


def test_a_key_that_stands_twice_is_refused() -> None:
    text = json.dumps(spec())
    refusal(text.replace('"quorum": 1', '"quorum": 1, "quorum": 2').encode())
    refusal(text.replace('"node": "FI"', '"node": "FI", "node": "GB"').encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_ascii(data: bytes) -> None:
    refusal(data)


@pytest.mark.parametrize(
    "payload", [b"[" * 60_000, b'{"a":' * 9 + b"1" + b"}" * 9, b"9" * 5000, b" " * (JOB_BYTES + 1)]
)
def test_bombs_are_refused(payload: bytes) -> None:
    refusal(payload)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_strict_json_reads_what_json_writes(value: Any) -> None:
    text = json.dumps(value)
    try:
        assert strict_json(text.encode()) == value
    except ValueError:
        assert text.count("[") + text.count("{") > 8


@given(moments, moments)
def test_a_job_is_valid_only_before_its_deadline(not_before: datetime, not_after: datetime) -> None:
    job = parse_job(json.dumps(spec(not_before=not_before.isoformat(), not_after=not_after.isoformat())).encode())
    fits = NOW < not_after <= NOW + MAX_DEADLINE and not_before <= NOW + CLOCK_TOLERANCE
    try:
        check_window(job, NOW)
    except HansaError as error:
        assert (error.reason, fits) == (Reason.DEADLINE_INVALID, False)  # noqa: PT017
    else:
        assert fits


def test_a_quorum_above_the_number_of_nodes_is_refused() -> None:
    check_quorum(parse_job(json.dumps(spec()).encode()))
    with pytest.raises(HansaError) as caught:
        check_quorum(parse_job(json.dumps(spec(quorum=2)).encode()))
    assert caught.value.reason is Reason.QUORUM_INVALID


def test_a_job_names_its_dataset_at_each_node() -> None:
    job = parse_job(json.dumps(spec()).encode())
    assert job.dataset_at("FI").dataset == "FI-lct"
    with pytest.raises(KeyError):
        job.dataset_at("GB")
