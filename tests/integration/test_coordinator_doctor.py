"""``hansa-coordinator doctor`` finds what would weaken the coordinator, and says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from coordinator.cli.main import main
from coordinator.config import make_config
from coordinator.doctor import FAILED, OK, WARNING, Finding, examine, libraries
from coordinator.founding import Founding, found
from coordinator.store.database import Database
from coordinator.store.nodes import NodeRepository
from coordinator.store.sessions import SessionRepository
from hansa.runtime.clock import utc_now
from tests.support.job_world import add_node
from tests.support.live_coordinator import trust_keys
from tests.support.trust_repository import write_key
from tests.support.trust_world import build_trust_world


@pytest.fixture
def state(tmp_path: Path) -> Path:
    now = utc_now()
    place, trust = tmp_path / "state", build_trust_world(now=now)
    config = make_config(federation="demo")
    found(Founding(place, config, trust.files, trust_keys(trust)), store_uuid="u" * 36, now=now)
    return place


def findings(state: Path, now: datetime | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(state, lambda: now or utc_now())}


def bad(state: Path, now: datetime | None = None) -> dict[str, str]:
    return {name: finding.outcome for name, finding in findings(state, now).items() if finding.outcome != OK}


def test_a_sound_coordinator_has_no_findings(state: Path) -> None:
    assert bad(state) == {}
    run = CliRunner().invoke(main, ["doctor", str(state), "--output", "json"])
    assert run.exit_code == 0, run.output
    assert {check["outcome"] for check in json.loads(run.output)["checks"]} == {OK}


@pytest.mark.parametrize(
    "name", [".", "ca", "trust", "ca/server-ca.key", "ca/invitations.key", "trust/timestamp.key", "coordinator.toml"]
)
def test_what_others_may_read_is_found(state: Path, name: str) -> None:
    place = state / name
    place.chmod(place.stat().st_mode | 0o040)
    found = findings(state)["keys"]
    assert found.outcome == FAILED
    assert str(place) in found.remedy
    run = CliRunner().invoke(main, ["doctor", str(state)])
    assert (run.exit_code, "chmod go=" in run.output) == (1, True)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0.6, {"timestamp metadata": WARNING}),
        (1.1, {"timestamp metadata": FAILED}),
        (6, {"timestamp metadata": FAILED, "snapshot metadata": WARNING}),
        (8, {"timestamp metadata": FAILED, "snapshot metadata": FAILED}),
        (160, {"timestamp metadata": FAILED, "snapshot metadata": FAILED, "targets metadata": WARNING}),
        (310, {"timestamp metadata": FAILED, "snapshot metadata": FAILED, "targets metadata": FAILED,
               "root metadata": WARNING}),
    ],
)  # fmt: skip
def test_metadata_that_expires_is_found_in_time(state: Path, days: float, expected: dict[str, str]) -> None:
    seen = bad(state, utc_now() + timedelta(days=days))
    seen.pop("certificates", None)
    assert seen == expected
    found = findings(state, utc_now() + timedelta(days=days))
    assert all(found[name].remedy for name in expected)


def test_a_certificate_near_its_end_is_found(state: Path) -> None:
    def outcome(days: int) -> str:
        return findings(state, utc_now() + timedelta(days=days))["certificates"].outcome

    outcomes = [outcome(days) for days in range(0, 420, 5)]
    assert sorted(set(outcomes), key=outcomes.index) == [OK, WARNING, FAILED]


def test_a_clock_that_is_behind_is_found(state: Path) -> None:
    assert findings(state, utc_now() - timedelta(hours=1))["clock"].outcome == FAILED
    late = (utc_now() + timedelta(days=2)).timestamp()
    os.utime(state / "coordinator.toml", (late, late))
    assert findings(state)["clock"].outcome == FAILED


def test_clocks_that_differ_are_the_nodes_fault_until_most_of_them_agree_against_us(state: Path) -> None:
    database = Database.open(f"sqlite:///{state / 'coordinator.db'}")

    def note(session: Session, node: str, ahead: int) -> None:
        if NodeRepository(session).find(node) is None:
            add_node(session, node)
        SessionRepository(session).connect(node, utc_now())
        SessionRepository(session).note_clock(node, ahead)

    outcomes = []
    for node, ahead in (("FI", -3), ("ES", 4000), ("IT", 3999)):
        database.run_sync(partial(note, node=node, ahead=ahead))
        outcomes.append(findings(state)["clock"])
    database.close()
    assert [found.outcome for found in outcomes] == [OK, WARNING, FAILED]
    assert "ES by 4000 s" in outcomes[1].detail
    assert "NTP" in outcomes[2].remedy


def other_log_key(state: Path) -> None:
    (state / "trust/log.key").unlink()
    write_key(state / "trust/log.key", Ed25519PrivateKey.generate())


def other_timestamp_key(state: Path) -> None:
    (state / "trust/timestamp.key").unlink()
    write_key(state / "trust/timestamp.key", Ed25519PrivateKey.generate())


def no_key(state: Path) -> None:
    (state / "trust/snapshot.key").unlink()


@pytest.mark.parametrize("spoil", [other_log_key, other_timestamp_key, no_key])
def test_keys_that_root_or_directory_do_not_name_are_found(state: Path, spoil: Callable[[Path], None]) -> None:
    spoil(state)
    assert bad(state) == {"trust keys": FAILED}


def test_a_root_that_somebody_has_exchanged_is_found(state: Path) -> None:
    root = state / "trust/root.json"
    root.write_bytes(root.read_bytes().replace(b'"version": 1', b'"version": 9'))
    assert bad(state) == {"trust root": FAILED}


def test_a_store_of_another_release_is_found_and_not_asked(state: Path) -> None:
    database = Database.open(f"sqlite:///{state / 'coordinator.db'}")
    database.run_sync(lambda session: session.execute(sa.text("DELETE FROM alembic_version")))
    database.close()
    found = findings(state)
    assert (found["store"].outcome, "migrate" in found["store"].remedy) == (FAILED, True)
    assert found["trust root"].outcome == FAILED
    assert found["keys"].outcome == OK


def test_a_store_that_is_gone_is_found_and_not_made(state: Path) -> None:
    for path in state.glob("coordinator.db*"):
        path.unlink()
    found = findings(state)
    assert (found["store"].outcome, "backup" in found["store"].remedy) == (FAILED, True)
    assert list(state.glob("coordinator.db*")) == []


def test_a_damaged_store_is_told_with_its_runbook_and_the_rest_is_looked_at(state: Path) -> None:
    path = state / "coordinator.db"
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 3 + 512] = bytes(range(256)) * 2
    path.write_bytes(data)
    found = findings(state)
    assert (found["store"].outcome, "store-damaged.md" in found["store"].remedy) == (FAILED, True)
    assert (found["settings"].outcome, found["keys"].outcome, found["disk"].outcome) == (OK, OK, OK)


def test_a_disk_without_room_for_new_work_is_found(state: Path) -> None:
    settings = state / "coordinator.toml"
    settings.write_text(settings.read_text() + f"free_mib = {1 << 20}\n")
    assert "disk-full.md" in findings(state)["disk"].remedy
    assert bad(state) == {"disk": FAILED}


def test_looking_changes_nothing(state: Path) -> None:
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    findings(state)
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_a_node_that_the_directory_does_not_have_is_found(state: Path) -> None:
    database = Database.open(f"sqlite:///{state / 'coordinator.db'}")
    database.run_sync(lambda session: add_node(session, "SE"))
    database.close()
    assert bad(state) == {"nodes": WARNING}
    assert "SE" in findings(state)["nodes"].detail


def test_weak_libraries_are_found() -> None:
    found = libraries({"PyJWT": "2.9.0", "sqlite": "3.45.1", "protobuf": "7.0.0"})
    assert found.outcome == FAILED
    assert "PyJWT 2.13 or later" in found.remedy
    assert "WAL" in found.detail


def test_a_folder_without_a_coordinator_is_told_so(tmp_path: Path) -> None:
    (found,) = examine(tmp_path)
    assert (found.check, found.outcome) == ("settings", FAILED)
