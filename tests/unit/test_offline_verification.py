"""What a researcher can prove offline, and that nothing forged passes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa.contract import envelope
from hansa.contract.errors import HansaError, Reason
from hansa.contract.log_evidence import ENTRIES_FILE, PROOFS_FILE
from hansa.contract.statement import parse_statement
from hansa.sdk.evidence import (
    JOB_FILE,
    RESULT_FILE,
    Gathering,
    read_evidence,
    statement_file,
    summary_file,
    write_evidence,
)
from hansa.sdk.verification import Verification, Verifier, verify_evidence
from tests.support.evidence_world import JOB, OTHER_JOB, EvidenceWorld, build_evidence_world, summary
from tests.support.trust_world import build_trust_world

pytestmark = pytest.mark.slow

TIMESTAMP = "trust/metadata/timestamp.json"
# An entry and its proof are held against each other: either may be at fault.
PAIR = {ENTRIES_FILE, PROOFS_FILE}
World = Callable[[], EvidenceWorld]


@pytest.fixture(scope="module")
def world() -> EvidenceWorld:
    return build_evidence_world()


@pytest.fixture(scope="module")
def files(world: EvidenceWorld) -> dict[str, bytes]:
    return world.files()


@pytest.fixture(scope="module")
def sealed() -> EvidenceWorld:
    return build_evidence_world(sealed=True)


def where(report: Verification) -> set[str]:
    assert not report.ok
    return {step.where for step in report.failed}


def test_honest_evidence_holds_in_every_step(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    report = verify_evidence(files, world.verifier, JOB)
    assert report.ok, report.failed
    assert (report.answered, report.silent) == (("FI", "ES", "IT"), {"SE": "EXPIRED"})
    assert report.result == files[RESULT_FILE]
    assert [step.name for step in report.steps] == [
        "files",
        "trust repository",
        "signed job",
        "approved analysis",
        "account of the nodes",
        *(f"{what} of {node}" for what in ("statement", "summary") for node in ("FI", "ES", "IT")),
        "result",
        "audit logs",
    ]


@pytest.mark.parametrize(("is_sealed", "flips"), [(False, 1000), (True, 300)])
def test_each_of_a_thousand_flipped_bits_is_detected_and_its_file_named(is_sealed: bool, flips: int) -> None:
    world = build_evidence_world(sealed=is_sealed)
    files, verifier = world.files(), world.verifier
    draw, names = random.Random(20260501 + is_sealed), sorted(files)
    for number in range(flips):
        name = names[number % len(names)]
        spoilt = bytearray(files[name])
        bit = draw.randrange(8 * len(spoilt))
        spoilt[bit // 8] ^= 1 << bit % 8
        report = verify_evidence({**files, name: bytes(spoilt)}, verifier, JOB)
        assert where(report) & (PAIR if name in PAIR else {name}), (name, bit, report.failed)


def test_a_signature_that_is_only_spelt_otherwise_is_detected(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    """Its bytes are the same, so that nothing but the form of the file shows it."""
    value = json.loads(files[TIMESTAMP])
    sig = value["signatures"][0]["sig"]
    spelt = files[TIMESTAMP].replace(sig.encode(), sig.upper().encode())
    assert spelt != files[TIMESTAMP]
    assert where(verify_evidence({**files, TIMESTAMP: spelt}, world.verifier, JOB)) == {TIMESTAMP}


def test_no_file_can_be_missing_or_empty(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    for name in files:
        without = {other: data for other, data in files.items() if other != name}
        assert not verify_evidence(without, world.verifier, JOB).ok or name.endswith(".root.json"), name
        assert not verify_evidence({**files, name: b""}, world.verifier, JOB).ok, name


@pytest.mark.parametrize("name_of", [statement_file, summary_file])
def test_files_swapped_between_nodes_are_detected(
    world: EvidenceWorld, files: dict[str, bytes], name_of: Callable[[str], str]
) -> None:
    one, other = name_of("FI"), name_of("ES")
    report = verify_evidence({**files, one: files[other], other: files[one]}, world.verifier, JOB)
    assert {one, other} <= where(report)


def test_whole_answers_swapped_between_nodes_are_detected(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    swapped = {name: files[name.replace("/FI", "/-").replace("/ES", "/FI").replace("/-", "/ES")] for name in files}
    assert {statement_file("FI"), statement_file("ES")} <= where(verify_evidence(swapped, world.verifier, JOB))


def test_a_file_that_belongs_to_nothing_is_detected(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    for name in (summary_file("SE"), statement_file("SE"), "log/SE.proof.json", "trust/targets/" + "a" * 64, "notes"):
        assert name in where(verify_evidence({**files, name: b"x"}, world.verifier, JOB))


def forged(world: EvidenceWorld, node: str, content: bytes | None = None, /, **changes: Any) -> dict[str, bytes]:
    """Return evidence that is whole but for the statement of one node, by who holds its key or another's."""
    made = replace(world, logs={})
    job = made.job()
    plain = {name: summary(99, 40) for name in made.nodes if name not in made.silent}
    left = {name: made.left(job, name, data) for name, data in plain.items()}
    statements = {name: made.statement(job, name, left[name], **(changes if name == node else {})) for name in plain}
    if content is not None:
        left[node] = plain[node] = content
    return made.assemble(job, plain, left, statements)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signer": "ES"}, "not signed by the node"),
        ({"signer": "_coordinator"}, "not signed by the node"),
        ({"node": "ES"}, "(node)"),
        ({"job_id": OTHER_JOB}, "(job_id)"),
        ({"job_digest": "sha256:" + "0" * 64}, "(job_digest)"),
        ({"round": 2}, "(round)"),
        ({"run_id": "0" * 32}, "(run_id)"),
        ({"snapshot": "sha256:" + "0" * 64}, "(snapshot)"),
        ({"dataset": "other"}, "(dataset)"),
        ({"federation": "other"}, "(federation)"),
        ({"recipient_key": "A" * 43 + "="}, "(recipient_key)"),
        ({"subject": "sealed-summary"}, "(subject)"),
        ({"release_class": "manual"}, "(deciders)"),
        ({"deciders": [{"by": "checker-fi"}]}, "(deciders)"),
        ({"deciders": [{"by": "ada", "decision": "sha256:" + "0" * 64}]}, "(deciders)"),
        (
            {"release_class": "dual", "deciders": [{"by": "checker-fi", "decision": "sha256:" + "0" * 64}] * 2},
            "(deciders)",
        ),
    ],
)
def test_a_statement_of_something_else_or_by_somebody_else_is_refused(
    world: EvidenceWorld, changes: dict[str, Any], words: str
) -> None:
    report = verify_evidence(forged(world, "FI", **changes), world.verifier, JOB)
    assert statement_file("FI") in where(report)
    assert words in report.failed[0].words


def test_a_statement_that_was_made_for_another_job_does_not_serve_again(world: EvidenceWorld) -> None:
    other = replace(world, job_id=OTHER_JOB, logs={})
    taken, honest = other.files()[statement_file("FI")], world.files()
    assert statement_file("FI") in where(verify_evidence({**honest, statement_file("FI"): taken}, world.verifier, JOB))


def test_two_statements_of_one_node_for_one_run_cannot_both_hold(world: EvidenceWorld) -> None:
    honest = world.files()
    other = forged(world, "FI", execution=2)
    assert verify_evidence(other, world.verifier, JOB).ok
    mixed = {**honest, statement_file("FI"): other[statement_file("FI")]}
    assert where(verify_evidence(mixed, world.verifier, JOB)) >= {RESULT_FILE}


def test_a_summary_that_the_node_did_not_sign_is_refused_though_the_result_fits_it(world: EvidenceWorld) -> None:
    report = verify_evidence(forged(world, "FI", summary(500, 300)), world.verifier, JOB)
    assert summary_file("FI") in where(report)


def test_evidence_of_another_job_proves_nothing_about_this_one(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    assert where(verify_evidence(files, world.verifier, OTHER_JOB)) == {JOB_FILE}


def test_a_root_of_another_federation_vouches_for_nothing(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    stranger = build_trust_world()
    report = verify_evidence(files, Verifier(root=stranger.root), JOB)
    assert where(report)
    assert report.failed[0].name == "trust repository"


def test_a_job_whose_analysis_lost_its_approval_does_not_verify() -> None:
    world = build_evidence_world()
    bundle = world.trust.bundles[0]
    world.trust.bundles = [world.trust.vote(bundle, "rev3", verdict="reject")]
    world.trust.publish()
    assert "approved analysis" in {step.name for step in verify_evidence(world.files(), world.verifier, JOB).failed}


def test_metadata_that_had_expired_at_the_release_does_not_vouch_for_it() -> None:
    world = build_evidence_world()
    job = world.job(not_after=world.trust.now + timedelta(days=20))
    plain = {node: summary() for node in ("FI", "ES", "IT")}
    late = {"released_at": world.trust.now + timedelta(days=3)}
    statements = {node: world.statement(job, node, data, **late) for node, data in plain.items()}
    report = verify_evidence(world.assemble(job, plain, plain, statements), world.verifier, JOB)
    assert where(report) == {TIMESTAMP}


def test_an_older_repository_than_the_node_had_at_the_release_does_not_vouch_for_it(world: EvidenceWorld) -> None:
    """Who has the on-line keys can still show the state before a revocation."""
    report = verify_evidence(forged(world, "FI", directory_version=2), world.verifier, JOB)
    assert where(report) == {TIMESTAMP}


def test_evidence_is_verified_long_after_its_metadata_has_expired(
    world: EvidenceWorld, files: dict[str, bytes]
) -> None:
    """Nothing in a verification asks the clock."""
    assert verify_evidence(files, world.verifier, JOB).ok


def test_a_result_below_its_quorum_is_refused(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    fewer = replace(world, silent=("IT", "SE"), logs={})
    job = world.job()
    plain = {node: summary() for node in ("FI", "ES")}
    statements = {node: fewer.statement(job, node, data) for node, data in plain.items()}
    report = verify_evidence(fewer.assemble(job, plain, plain, statements), world.verifier, JOB)
    assert where(report) == {RESULT_FILE}


def test_a_result_that_says_nothing_may_be_said_though_there_are_figures_is_refused(
    world: EvidenceWorld, files: dict[str, bytes]
) -> None:
    value = json.loads(files[RESULT_FILE])
    value |= {"state": "WITHHELD", "variants": []}
    claimed = json.dumps(value, separators=(",", ":")).encode()
    assert where(verify_evidence({**files, RESULT_FILE: claimed}, world.verifier, JOB)) == {RESULT_FILE}


def test_sealed_summaries_are_opened_and_combined_by_their_reader_only(sealed: EvidenceWorld) -> None:
    files = sealed.files()
    assert b'"variants":[]' in files[RESULT_FILE]
    opened = verify_evidence(files, sealed.verifier, JOB)
    assert opened.ok
    assert opened.result is not None
    assert b'"released"' in opened.result
    closed = verify_evidence(files, replace(sealed.verifier, recipient_key=None), JOB)
    assert closed.ok
    assert closed.result == files[RESULT_FILE]
    other = verify_evidence(files, replace(sealed.verifier, recipient_key=X25519PrivateKey.generate()), JOB)
    assert summary_file("FI") in where(other)


def test_an_auditor_verifies_all_but_the_summaries(world: EvidenceWorld, files: dict[str, bytes]) -> None:
    some = {name: data for name, data in files.items() if not name.startswith("summaries/")}
    assert not verify_evidence(some, world.verifier, JOB).ok
    assert verify_evidence(some, replace(world.verifier, with_summaries=False), JOB).ok


def test_a_log_that_does_not_show_the_release_yet_is_pending_not_wrong(
    world: EvidenceWorld, files: dict[str, bytes]
) -> None:
    some = {name: data for name, data in files.items() if not name.startswith("log/")}
    report = verify_evidence(some, world.verifier, JOB)
    assert [(step.name, step.pending) for step in report.failed] == [("audit logs", True)]


# --- the files ---------------------------------------------------------------------------


def test_evidence_is_the_same_after_a_way_through_a_folder(files: dict[str, bytes], tmp_path: Path) -> None:
    write_evidence(files, tmp_path / "kept")
    assert read_evidence(tmp_path / "kept") == files
    assert (tmp_path / "kept" / RESULT_FILE).stat().st_mode & 0o077 == 0
    with pytest.raises(HansaError) as refused:
        write_evidence(files, tmp_path / "kept")
    assert refused.value.reason is Reason.FILE_INVALID


@pytest.mark.parametrize(
    "name",
    ["../result.json", "/etc/passwd", "summaries/../x.bin", "summaries/fi.bin", "statements/FI.json", "log/x", ""],
)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(HansaError) as refused:
        write_evidence({name: b"x"}, tmp_path / "kept")
    assert refused.value.reason is Reason.EVIDENCE_INVALID
    with pytest.raises(HansaError):
        Gathering().add(name, b"x")


def test_a_link_or_a_stranger_in_the_folder_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    write_evidence(files, tmp_path)
    (tmp_path / RESULT_FILE).unlink()
    (tmp_path / RESULT_FILE).symlink_to("/etc/hostname")
    with pytest.raises(HansaError):
        read_evidence(tmp_path)
    (tmp_path / RESULT_FILE).unlink()
    (tmp_path / "README").write_text("x")
    with pytest.raises(HansaError) as refused:
        read_evidence(tmp_path)
    assert refused.value.field == "README"


def test_a_statement_holds_rules_and_outcomes_and_no_count(files: dict[str, bytes]) -> None:
    statement = parse_statement(envelope.from_json(files[statement_file("FI")]).payload)
    assert [set(check.model_dump()) for check in statement.predicate.checks] == [{"rule", "outcome"}]
