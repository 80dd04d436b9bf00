"""`hansa-node approval …` and `job approve|decline` against an agent's real API on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract.raw_keys import key_digest, key_text
from hansa.sdk.keys import create_key, read_public_key
from node_agent.audit.trail import AuditTrail
from node_agent.backups import Backups
from node_agent.datasets import Datasets
from node_agent.link.encoding import WireReporter
from node_agent.local_api.server import LocalApi
from node_agent.local_api.views import Views
from node_agent.policy.book import PolicyBook
from node_agent.policy.changes import PolicyChanges
from node_agent.policy.file import load_policy
from node_agent.store.models import RunRow
from tests.support.agent import ANALYSIS, FEDERATION, HOLDER, NODE, Bench, job, make_bench, offer, person_key
from tests.support.agent_double import serving
from tests.support.node_commands import Done, hansa_node

KEY = f"{ANALYSIS.name}@{ANALYSIS.version}"


def key_file(folder: Path, name: str) -> str:
    """Write a person's key as `hansa key create` does; return its path."""
    path = folder / f"{name}.key"
    pem = person_key(name).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return str(path)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path, approved=False)
    database, state = made.database, made.state
    state.policy_file.touch()
    status = {"analyses": {KEY: ANALYSIS.digest}}
    api = LocalApi(
        executions=made.executions,
        datasets=Datasets(
            database=database, state=state, reporter=WireReporter(NODE), bells=made.bells, clock=lambda: made.now
        ),
        airlock=made.airlock,
        approvals=made.approvals,
        policy=PolicyChanges(book=PolicyBook(state.policy_file), database=database, clock=lambda: made.now),
        audit=AuditTrail(database=database),
        backups=Backups(state=state, clock=lambda: made.now),
        views=Views(
            node=NODE,
            federation=FEDERATION,
            state=state,
            database=database,
            link=dict,
            policy_digest=str,
            trust=lambda: status,
        ),
    )
    with serving(api.app(), state):
        yield made
    database.close()


def command(bench: Bench, *arguments: str) -> Done:
    return hansa_node(bench.state.path, *arguments)


def waiting(bench: Bench, **changes: Any) -> str:
    signed = offer(job(**changes))
    bench.database._transact(lambda session: bench.offers.receive(session, signed, bench.now))
    assert state(bench, signed.run_id) == "AWAITING_APPROVAL"
    return signed.run_id


def state(bench: Bench, run: str) -> str:
    return bench.database._transact(lambda session: session.get_one(RunRow, run).state)


def add(bench: Bench, key: str, *more: str, person: str = HOLDER) -> Done:
    what = ("--project", "lactose", "--analysis", KEY, "--dataset", "FI-lct", "--until", "2099-12-31")
    return command(bench, "approval", "add", "--person", person, "--key", key, *what, *more)


def test_a_data_holder_approves_one_job_with_their_key(bench: Bench, tmp_path: Path) -> None:
    run, other = waiting(bench), waiting(bench)
    done = command(bench, "job", "approve", run, "--person", HOLDER, "--key", key_file(tmp_path, HOLDER))
    assert done.code == 0, done.err
    assert "QUEUED" in done.out
    assert state(bench, other) == "AWAITING_APPROVAL"
    listed = json.loads(command(bench, "approval", "list", "--output", "json").out)["approvals"]
    assert [(one["kind"], one["approver"]) for one in listed] == [("job", HOLDER)]


def test_a_data_holder_sees_what_for_and_exactly_which_job_before_signing(bench: Bench) -> None:
    run = waiting(bench, purpose="milk")
    shown = command(bench, "job", "show", run)
    assert shown.code == 0, shown.err
    facts = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    asked = json.loads(command(bench, "job", "show", run, "--output", "json").out)
    assert (facts["purpose"], facts["project"], facts["nodes"]) == ("milk", "lactose", "FI, ES")
    assert facts["job_digest"] == asked["job_digest"]
    assert facts["analysis_digest"] == ANALYSIS.digest


@pytest.mark.parametrize(("person", "key"), [("ada", "ada"), (HOLDER, "ada"), ("operator-fi", "operator-fi")])
def test_nobody_else_approves_and_the_refusal_says_why(bench: Bench, tmp_path: Path, person: str, key: str) -> None:
    run = waiting(bench)
    done = command(
        bench, "job", "approve", run, "--person", person, "--key", key_file(tmp_path, key), "--output", "json"
    )
    assert (done.code, json.loads(done.err)["error"]["reason"]) == (1, "APPROVAL_INVALID")
    assert state(bench, run) == "AWAITING_APPROVAL"
    assert json.loads(command(bench, "approval", "list", "--output", "json").out)["approvals"] == []


def test_a_no_needs_no_key_but_a_reason(bench: Bench) -> None:
    run = waiting(bench)
    assert command(bench, "job", "decline", run).code == 2
    done = command(bench, "job", "decline", run[:8], "--person", HOLDER, "--reason", "not for this")
    assert done.code == 0, done.err
    assert "APPROVAL_REFUSED" in done.out
    audit = asyncio.run(AuditTrail(database=bench.database).entries(after=None, limit=1))
    assert audit["entries"][0]["subjects"] == {"by": HOLDER, "reason": "not for this"}


def test_a_standing_approval_is_given_listed_and_revoked(bench: Bench, tmp_path: Path) -> None:
    # The command takes the time from the wall clock; the bench stands still in the past.
    from hansa.runtime.clock import utc_now

    bench.now = bench.world.now = utc_now()
    bench.world.publish()
    bench.trust_now()
    done = add(bench, key_file(tmp_path, HOLDER), "--max-variants", "5", "--output", "json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    says = made["says"]
    assert (says["analysis"]["digest"], says["limits"]["max_variants"]) == (ANALYSIS.digest, 5)
    assert (says["federation"], says["node"], says["not_after"]) == (FEDERATION, NODE, "2099-12-31T23:59:59Z")
    assert "lactose, allele-frequency@1.0, FI-lct" in command(bench, "approval", "list").out
    assert command(bench, "approval", "revoke", made["id"][:8], "--person", "olga").code == 0
    (listed,) = json.loads(command(bench, "approval", "list", "--output", "json").out)["approvals"]
    assert (listed["revoked_by"], listed["revoked_at"] is not None) == ("olga", True)
    assert command(bench, "approval", "revoke", "ffff").code == 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--analysis", "other@1.0"), "ANALYSIS_UNKNOWN"),
        (("--until", "tomorrow"), "APPROVAL_INVALID"),
        (("--until", "2099-12-31T10:00"), "APPROVAL_INVALID"),
        (("--until", "2001-01-01"), "APPROVAL_INVALID"),
        (("--project", "Not A Name"), "APPROVAL_INVALID"),
    ],
)
def test_a_standing_approval_that_makes_no_sense_is_refused(
    bench: Bench, tmp_path: Path, more: tuple[str, ...], reason: str
) -> None:
    done = add(bench, key_file(tmp_path, HOLDER), *more, "--output", "json")
    assert (done.code, json.loads(done.err)["error"]["reason"]) == (1, reason)


def test_a_key_that_others_can_read_is_not_used(bench: Bench, tmp_path: Path) -> None:
    run, key = waiting(bench), key_file(tmp_path, HOLDER)
    Path(key).chmod(0o644)
    done = command(bench, "job", "approve", run, "--person", HOLDER, "--key", key, "--output", "json")
    assert (done.code, json.loads(done.err)["error"]["reason"]) == (1, "KEY_INVALID")


def test_what_is_no_envelope_is_refused_by_the_agent(bench: Bench) -> None:
    from hansa.contract.errors import HansaError, Reason
    from node_agent.local_api.client import AgentClient

    agent = AgentClient(bench.state)
    for envelope in (b"", b"{}", b"[" * 10_000, b'{"payloadType": 1}'):
        with pytest.raises(HansaError) as refused:
            agent.add_approval(envelope)
        assert refused.value.reason is Reason.ENVELOPE_INVALID


def test_a_data_holder_is_pinned_by_their_public_key_and_let_go_by_their_name(bench: Bench, tmp_path: Path) -> None:
    create_key(tmp_path / "mika")
    public = tmp_path / "mika.pub"
    assert command(bench, "policy", "allow", "data-holder", "mika", "--key", str(public)).code == 0
    text = key_text(read_public_key(public))
    pinned = load_policy(bench.state.policy_file).approval.data_holders
    assert pinned == (f"mika={key_digest(text)}",)
    assert command(bench, "policy", "disallow", "data-holder", "mika").code == 0
    assert load_policy(bench.state.policy_file).approval.data_holders == ()
    assert command(bench, "policy", "allow", "data-holder", "mika").code == 2
    assert command(bench, "policy", "allow", "submitter", "ada", "--key", str(public)).code == 2


def test_a_private_key_is_not_taken_for_a_public_one(bench: Bench, tmp_path: Path) -> None:
    assert isinstance(person_key(HOLDER), Ed25519PrivateKey)
    done = command(
        bench, "policy", "allow", "data-holder", HOLDER, "--key", key_file(tmp_path, HOLDER), "--output", "json"
    )
    assert (done.code, json.loads(done.err)["error"]["reason"]) == (1, "KEY_INVALID")
