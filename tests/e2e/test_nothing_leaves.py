"""The canary: what may never leave a node is looked for wherever it could have gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demo_oracle import sample_sexes
from tests.support.local_federation import COUNTRIES, Federation
from tests.support.loopback_capture import LoopbackCapture

pytestmark = pytest.mark.slow


@pytest.fixture
def canaries(federation: Federation, demo_data: Path) -> list[bytes]:
    """Every sample id, and every path that is a node's own business."""
    samples = [sample for country in COUNTRIES for sample in sample_sexes(demo_data / country / "samples.tsv")]
    paths = [str(demo_data), *(str(federation.layout.node(country).folder) for country in COUNTRIES)]
    return [text.encode() for text in (*samples, *paths)]


def _found(canaries: list[bytes], places: Iterator[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [(name, canary) for name, content in places for canary in canaries if canary in content]


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()


@pytest.fixture(scope="module")
def asked(federation: Federation, capture: LoopbackCapture | None, datasets: list[str]) -> str:
    """A job over all countries that has ended, with one that failed at its nodes besides."""
    question = ("--param", "variants=rs12913832,rs16891982,rs671", "--param", "stratify=sex")
    ended = federation.hansa("job", "submit", "allele-frequency", *datasets, *question, "--wait")
    assert ended.code == 0, ended.err
    job = str(ended.document["job_id"])
    for words in (
        ("nodes", "list"),
        ("datasets", "list"),
        ("job", "list"),
        ("job", "show", job),
        ("job", "result", job),
    ):
        federation.table(*words)
    federation.hansa("job", "submit", "allele-frequency", *datasets, "--param", "region=1:1-900000000", "--wait")
    return job


def test_no_sample_and_no_path_of_a_node_is_at_the_coordinator(
    federation: Federation, canaries: list[bytes], asked: str
) -> None:
    state, log = federation.layout.coordinator_state, federation.layout.coordinator.log_file
    contents = dict(_files(state))
    assert any(asked.encode() in content for content in contents.values()), "the database is among the files"
    assert _found(canaries, iter([*contents.items(), (str(log), log.read_bytes())])) == []


def test_no_sample_and_no_path_of_a_node_was_shown_to_the_researcher(
    federation: Federation, canaries: list[bytes], asked: str
) -> None:
    shown = "\n".join(federation.shown)
    assert asked in shown
    assert _found(canaries, iter([("shown", shown.encode())])) == []


def test_nothing_readable_passed_the_coordinators_ports(
    capture: LoopbackCapture | None, canaries: list[bytes], asked: str
) -> None:
    if capture is None:
        pytest.skip("reading packets needs CAP_NET_RAW")
    payload = capture.payload()
    assert b"\x16\x03" in payload, "TLS handshakes were recorded"
    readable = [*canaries, asked.encode(), b"rs12913832", b"aisnp", b"allele-frequency", b"hansa.v1"]
    assert _found(readable, iter([("traffic", payload)])) == []


def test_not_even_a_nodes_snapshot_keeps_a_sample_id(federation: Federation, canaries: list[bytes], asked: str) -> None:
    for country in COUNTRIES:
        snapshots = federation.layout.node(country).state / "datasets"
        assert list(snapshots.rglob("genotypes.psam"))
        assert _found(canaries, _files(snapshots)) == []


def test_the_canaries_are_found_where_they_are(demo_data: Path, canaries: list[bytes]) -> None:
    # The search above would have found them.
    assert _found(canaries[:1], _files(demo_data / COUNTRIES[0]))
