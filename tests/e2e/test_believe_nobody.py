"""What signatures give the people of a federation: proofs without trust in the coordinator, and a say for each."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from deploy.local.cast import AUDITOR, RESEARCHER, holder_of
from tests.support.local_federation import COUNTRIES, Federation, eventually

pytestmark = pytest.mark.slow

_VARIANT = ("--param", "variants=rs12913832")


@pytest.fixture(scope="module")
def evidence(federation: Federation, datasets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evidence of a job that all countries have answered, saved as the researcher saves it."""
    job = federation.submit(*datasets, *_VARIANT)
    assert federation.hansa("job", "watch", job).code == 0
    folder = tmp_path_factory.mktemp("evidence") / "saved"
    logged = ("job", "verify", job, "--save", str(folder))
    eventually(lambda: _fetched(federation, folder, logged), "all logs are cosigned")
    return folder


def _fetched(federation: Federation, folder: Path, command: tuple[str, ...]) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return federation.hansa(*command).code == 0


def _verify(federation: Federation, folder: Path) -> tuple[int, list[dict[str, str]]]:
    job = json.loads((folder / "result.json").read_bytes())["job_id"]
    ended = federation.hansa("job", "verify", job, "--evidence", str(folder))
    return ended.code, list(ended.document["steps"])


def test_a_saved_result_is_verified_from_its_files_alone(federation: Federation, evidence: Path) -> None:
    code, steps = _verify(federation, evidence)
    assert code == 0, steps
    assert {f"statement of {country}" for country in COUNTRIES} <= {step["step"] for step in steps}


def test_a_changed_file_of_the_evidence_shows(federation: Federation, evidence: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(evidence, tmp_path / "changed")
    path = changed / "statements" / "FI.dsse.json"
    data = bytearray(path.read_bytes())
    data[random.Random(7).randrange(len(data))] ^= 1
    path.write_bytes(data)
    code, steps = _verify(federation, changed)
    assert code != 0
    assert any("FI" in step["step"] + step["where"] for step in steps if not step["ok"])


def test_a_job_that_no_standing_approval_covers_waits_for_the_data_holder(federation: Federation) -> None:
    approvals = federation.at_node("GB", "approval", "list", "--output", "json").document["approvals"]
    for approval in approvals:
        assert federation.at_node("GB", "approval", "revoke", approval["id"]).code == 0
    job = federation.submit("--dataset", "GB-aisnp", *_VARIANT)
    eventually(lambda: federation.run_state(job, "GB") == "AWAITING_APPROVAL", "the run of GB waits")
    runs = federation.at_node("GB", "job", "list", "--output", "json").document["runs"]
    run = next(run["run_id"] for run in runs if run["job_id"] == job)
    holder, key = holder_of("GB"), federation.layout.key(holder_of("GB"))
    stranger = federation.layout.key(RESEARCHER)
    forged = federation.at_node("GB", "job", "approve", run, "--person", holder, "--key", str(stranger))
    assert forged.code != 0
    assert federation.run_state(job, "GB") == "AWAITING_APPROVAL"
    given = federation.at_node("GB", "job", "approve", run, "--person", holder, "--key", str(key))
    assert given.code == 0, given.err
    assert federation.hansa("job", "watch", job).code == 0
    again = ("approval", "add", "--person", holder, "--key", str(key), "--project", "demo", "--until", "2035-01-01")
    scope = ("--analysis", "allele-frequency@1.0", "--dataset", "GB-aisnp")
    assert federation.at_node("GB", *again, *scope).code == 0


def test_an_auditor_verifies_the_coordinators_log_and_changes_nothing(federation: Federation) -> None:
    verified = federation.hansa("audit", "verify", person=AUDITOR)
    assert verified.code == 0, verified.err
    assert verified.document["sound"] is True
    refused = federation.hansa("admin", "node", "suspend", "FI", person=AUDITOR)
    assert refused.reason == "PERMISSION_DENIED"


def test_a_sealed_result_is_for_the_researcher_alone(federation: Federation, tmp_path: Path) -> None:
    job = federation.submit("--dataset", "IT-aisnp", "--dataset", "ES-aisnp", *_VARIANT, "--seal")
    assert federation.hansa("job", "watch", job).code == 0
    key = str(federation.layout.recipient_key(RESEARCHER))
    opened = federation.hansa("job", "result", job, "--recipient-key", key)
    assert opened.code == 0, opened.err
    (entry,) = opened.document["variants"]
    assert {name: cell["status"] for name, cell in entry["countries"].items()} == {"IT": "released", "ES": "released"}
    federation.hansa("job", "verify", job, "--recipient-key", key, "--save", str(tmp_path / "sealed"))
    for country in ("IT", "ES"):
        # What the coordinator has of each country cannot be read by it.
        left = (tmp_path / "sealed" / "summaries" / f"{country}.bin").read_bytes()
        assert b"variant" not in left
        assert b"15:28365618" not in left
    assert "ac" not in json.dumps(json.loads((tmp_path / "sealed" / "result.json").read_bytes()).get("variants", []))
