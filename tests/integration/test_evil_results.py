"""What a breached coordinator tells a researcher: every file of a job's evidence changed, and whole forged accounts.

``verify_evidence`` is what ``hansa job verify`` runs. The forger has the
coordinator's log key and the keys of snapshot and timestamp, recomputes the
result and its log as it likes, and lacks the nodes' and the people's keys.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract import envelope
from hansa.contract.envelope import STATEMENT_TYPE, Signed
from hansa.contract.job import JobSpec
from hansa.sdk.evidence import JOB_FILE, RESULT_FILE, statement_file, summary_file
from hansa.sdk.verification import Verification, verify_evidence
from tests.support.evidence_world import OTHER_JOB, EvidenceWorld, build_evidence_world, summary
from tests.support.json_mutants import few_of_each, json_mutants, raw_mutants
from tests.support.tally import report

Files = Mapping[str, bytes]
# Of each value; a verification takes some 25 ms.
MOST = 4


@pytest.fixture(scope="module")
def world() -> EvidenceWorld:
    """FI, ES and SE; SE said nothing."""
    return build_evidence_world(("FI", "ES", "SE"), silent=("SE",))


@pytest.fixture(scope="module")
def honest(world: EvidenceWorld) -> Files:
    return world.files()


def verified(world: EvidenceWorld, files: Files) -> Verification:
    return verify_evidence(files, world.verifier, world.job_id)


def test_honest_evidence_holds(world: EvidenceWorld, honest: Files) -> None:
    found = verified(world, honest)

    assert found.ok, found.failed
    assert found.answered == ("FI", "ES")
    assert found.silent == {"SE": "EXPIRED"}


def mutants(name: str, data: bytes, key: Ed25519PrivateKey) -> Iterator[tuple[str, bytes]]:
    """Yield the mutants of one file: of its bytes, of its JSON, and of the JSON that an envelope carries."""
    for place in range(0, len(data), max(len(data) // 20, 1)):
        yield f"{name}:byte-{place}", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    yield f"{name}:emptied", b""
    yield f"{name}:shortened", data[:-1]
    yield f"{name}:doubled", data * 2
    if not data.startswith(b"{"):
        return
    value = json.loads(data)
    compact: Callable[[Any], bytes] = lambda v: json.dumps(v, separators=(",", ":")).encode()  # noqa: E731
    for mutant in few_of_each(json_mutants(value), MOST):
        yield f"{name}:{mutant.id}", compact(mutant.of(value))
    for raw in raw_mutants(data):
        yield f"{name}:{raw.id}", raw.edit(data)
    if name.endswith(".dsse.json"):
        yield from ((f"{name}>{what}", changed) for what, changed in _of_payload(data, key))


def _of_payload(data: bytes, key: Ed25519PrivateKey) -> Iterator[tuple[str, bytes]]:
    signed = envelope.from_json(data)
    value = json.loads(signed.payload)
    for number, mutant in enumerate(few_of_each(json_mutants(value), MOST)):
        payload = json.dumps(mutant.of(value), separators=(",", ":"), sort_keys=True).encode()
        if number % 2:
            yield mutant.id, envelope.to_json(replace(signed, payload=payload))
        else:
            again = envelope.sign(signed.payload_type, payload, key_id=signed.key_id, key=key)
            yield f"{mutant.id}:signed-anew", envelope.to_json(again)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        JOB_FILE,
        RESULT_FILE,
        statement_file("FI"),
        summary_file("FI"),
        "log/checkpoint",
        "log/entry.json",
        "log/proof.json",
        "log/FI.checkpoint",
        "log/FI.proof.json",
        "trust/metadata/timestamp.json",
    ],
)
def test_evil_every_value_of_a_file_of_the_evidence_changed_once_is_found(
    world: EvidenceWorld, honest: Files, name: str
) -> None:
    key = world.trust.keys["_coordinator"]
    steps: Counter[str] = Counter()
    believed = []
    for what, changed in mutants(name, honest[name], key):
        if changed == honest[name]:
            continue
        found = verified(world, {**honest, name: changed})
        steps[found.failed[0].name if found.failed else "nowhere: nobody can prove it"] += 1
        if found.ok:
            believed.append(what)
            assert (found.answered, set(found.silent)) == (("FI", "ES"), {"SE"})

    report(f"{name}, each value changed once; where it was found", steps)
    # Why a node is silent, only the coordinator says; that it is, and that it gave nothing, shows.
    assert [what for what in believed if not what.startswith("result.json:nodes.[2].")] == []
    assert sum(steps.values()) >= 20


def test_evil_a_file_of_the_evidence_left_out_added_or_swapped_is_found(world: EvidenceWorld, honest: Files) -> None:
    names = sorted(honest)
    for name in names:
        if name.startswith("trust/metadata/1.root"):
            continue  # the verifier has its own
        assert not verified(world, {other: data for other, data in honest.items() if other != name}).ok, name
    for one, other in itertools.pairwise(names):
        assert not verified(world, {**honest, one: honest[other], other: honest[one]}).ok, (one, other)
    for name in (
        "statements/SE.dsse.json",
        "summaries/SE.bin",
        "log/SE.proof.json",
        "else",
        "trust/targets/" + "0" * 64,
    ):
        assert not verified(world, {**honest, name: honest[statement_file("FI")]}).ok, name


def forged(
    world: EvidenceWorld, change: Callable[[Signed, dict[str, bytes], dict[str, Signed]], None], **job: Any
) -> Files:
    """Return evidence in which ``change`` has altered summaries and statements, and all else goes with it."""
    signed = world.job(**job)
    contents = {node: summary(99 + place, 40 + place) for place, node in enumerate(world.nodes) if node != "SE"}
    statements = {node: world.statement(signed, node, content) for node, content in contents.items()}
    change(signed, contents, statements)
    return world.assemble(signed, contents, contents, statements)


def test_evil_a_node_certificate_gives_no_power_over_summaries() -> None:
    """T-C6: the coordinator makes itself a node's certificate; the directory has another key for what a node signs."""
    world = build_evidence_world(("FI", "ES", "SE"), silent=("SE",))
    world.trust.keys["forged"] = Ed25519PrivateKey.generate()

    def invent(job: Signed, contents: dict[str, bytes], statements: dict[str, Signed]) -> None:
        contents["FI"] = summary(500, 400)
        statements["FI"] = world.statement(job, "FI", contents["FI"], signer="forged")

    assert failed(world, forged(world, invent)) == "statement of FI"


def test_evil_a_summary_invented_for_a_node_that_was_silent_is_found() -> None:
    world = build_evidence_world(("FI", "ES", "SE"), silent=("SE",))

    def invent(job: Signed, contents: dict[str, bytes], statements: dict[str, Signed]) -> None:
        contents["SE"] = summary(500, 400)
        statements["SE"] = world.statement(job, "SE", contents["SE"], signer="_coordinator")

    assert failed(world, forged(world, invent)) == "statement of SE"


def test_evil_a_nodes_statement_on_another_job_is_found() -> None:
    """A true statement of the same node, replayed."""
    world = build_evidence_world(("FI", "ES", "SE"), silent=("SE",))

    def replay(job: Signed, contents: dict[str, bytes], statements: dict[str, Signed]) -> None:
        statements["FI"] = world.statement(world.job(job_id=OTHER_JOB), "FI", contents["FI"])

    assert failed(world, forged(world, replay)) == "statement of FI"


def test_evil_another_summary_under_a_true_statement_is_found() -> None:
    world = build_evidence_world(("FI", "ES", "SE"), silent=("SE",))

    def swap(_job: Signed, contents: dict[str, bytes], _statements: dict[str, Signed]) -> None:
        contents["FI"], contents["ES"] = contents["ES"], contents["FI"]

    assert failed(world, forged(world, swap)) == "summary of FI"


def test_evil_one_nodes_statement_for_another_node_is_found() -> None:
    world = build_evidence_world(("FI", "ES", "SE"), silent=("SE",))

    def swap(_job: Signed, contents: dict[str, bytes], statements: dict[str, Signed]) -> None:
        contents["ES"], statements["ES"] = contents["FI"], statements["FI"]

    assert failed(world, forged(world, swap)) == "statement of ES"


def test_evil_another_job_than_the_researchers_is_found() -> None:
    """Its own envelope, in the researcher's name: nodes' true statements do not speak of it either."""
    world = build_evidence_world(("FI", "ES", "SE"), silent=("SE",))
    files = dict(world.files())
    job = envelope.from_json(files[JOB_FILE])
    spec = JobSpec.model_validate_json(job.payload).model_copy(update={"parameters": {"variants": "1:1:A:G"}})
    key = world.trust.keys["_coordinator"]
    files[JOB_FILE] = envelope.to_json(envelope.sign(envelope.JOB_TYPE, spec.to_bytes(), key_id="ada", key=key))

    assert failed(world, files) == "signed job"


def test_evil_a_withheld_release_shows_who_did_not_answer() -> None:
    """T-C4: what is kept back cannot be proven to exist, but the account says who is missing."""
    world = build_evidence_world(("FI", "ES", "SE"), silent=("SE",))

    def withhold(_job: Signed, contents: dict[str, bytes], statements: dict[str, Signed]) -> None:
        del contents["FI"], statements["FI"]

    enough = verified(world, forged(world, withhold, quorum=1))
    assert set(enough.silent) == {"FI", "SE"}
    assert enough.answered == ("ES",)
    assert failed(world, forged(world, withhold, quorum=2)) == "result"


def test_evil_a_coordinator_that_is_no_witness_of_a_nodes_log_is_found(world: EvidenceWorld, honest: Files) -> None:
    """Its log without the witnesses' cosignatures, and the node's checkpoint without its own."""
    for name in ("log/checkpoint", "log/FI.checkpoint"):
        lines = honest[name].split(b"\n")
        bare = b"\n".join(lines[:5]) + b"\n"
        assert bare != honest[name]
        assert not verified(world, {**honest, name: bare}).ok


def test_evil_statement_types_do_not_stand_in_for_one_another(world: EvidenceWorld, honest: Files) -> None:
    """A signature of the node over anything but a statement is no statement."""
    true = envelope.from_json(honest[statement_file("FI")])
    key = world.trust.keys["FI"]
    for kind in (envelope.JOB_TYPE, envelope.VOTE_TYPE, envelope.APPROVAL_TYPE, envelope.DECISION_TYPE):
        other = envelope.sign(kind, true.payload, key_id="FI", key=key)
        relabelled = replace(other, payload_type=STATEMENT_TYPE)
        for signed in (other, relabelled):
            assert not verified(world, {**honest, statement_file("FI"): envelope.to_json(signed)}).ok


def failed(world: EvidenceWorld, files: Files) -> str:
    """Return the first step of a verification that must fail."""
    found = verified(world, files)
    assert not found.ok
    return found.failed[0].name
