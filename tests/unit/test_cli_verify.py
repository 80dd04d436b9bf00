"""``hansa job verify`` on a folder of files, without any contact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hansa.cli.main import cli
from hansa.sdk.evidence import RESULT_FILE, statement_file, write_evidence
from tests.support.evidence_world import JOB, OTHER_JOB, EvidenceWorld, build_evidence_world


@pytest.fixture(scope="module")
def world() -> EvidenceWorld:
    return build_evidence_world()


@pytest.fixture
def place(world: EvidenceWorld, tmp_path: Path) -> Path:
    """Return a folder with ``evidence`` and ``root.json``."""
    write_evidence(world.files(), tmp_path / "evidence")
    (tmp_path / "root.json").write_bytes(world.trust.root)
    return tmp_path


def verify(place: Path, *more: str, job: str = JOB) -> int:
    arguments = ["job", "verify", job, "--evidence", str(place / "evidence"), "--trust-root", str(place / "root.json")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, *more])
    return int(str(ended.value.code))


def test_evidence_that_holds_is_told_step_by_step_with_exit_code_0(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(place) == 0
    out = capsys.readouterr().out
    assert out.count("ok    ") == 13
    assert "SE gave nothing; the coordinator reports EXPIRED" in out
    assert out.endswith("Everything holds.\n")


def test_what_does_not_hold_is_named_with_its_file_and_exit_code_5(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = place / "evidence" / RESULT_FILE
    result.write_bytes(result.read_bytes().replace(b'"ac":123', b'"ac":124'))
    assert verify(place, "--output", "json") == 5
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert [step["where"] for step in report["steps"] if not step["ok"]] == [RESULT_FILE]


def test_evidence_of_another_job_does_not_hold(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(place, job=OTHER_JOB) == 5
    assert "another job" in capsys.readouterr().out


def test_a_stranger_among_the_files_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "evidence" / "notes.txt").write_text("hello")
    assert verify(place) == 5
    assert "notes.txt" in capsys.readouterr().err


def test_wrong_usage_is_no_finding(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(place, "--save", str(place / "kept")) == 2
    assert verify(place, "--trust-root", str(place / "missing.json")) == 2
    assert verify(place, "--recipient-key", str(place / "missing.key")) == 2
    assert verify(place, job="../x") == 2
    assert capsys.readouterr().out == ""


def test_a_terminal_obeys_nothing_that_stands_in_the_evidence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statement = place / "evidence" / statement_file("FI")
    statement.write_bytes(b'{"payloadType":"\x1b[2Jx"}')
    assert verify(place) == 5
    assert "\x1b" not in capsys.readouterr().out


def test_a_sealed_job_is_opened_with_its_readers_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sealed = build_evidence_world(sealed=True)
    write_evidence(sealed.files(), tmp_path / "evidence")
    (tmp_path / "root.json").write_bytes(sealed.trust.root)
    assert verify(tmp_path) == 0
    assert "sealed; not opened" in capsys.readouterr().out
    key = tmp_path / "ada-recipient"
    key.touch(mode=0o600)
    key.write_bytes(sealed.recipient.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert verify(tmp_path, "--recipient-key", str(key)) == 0
    assert "recomputed" in capsys.readouterr().out
