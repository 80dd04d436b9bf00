"""Votes, authorship and approvals with one value changed: nobody's word any more, wherever they turn up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract import envelope
from hansa.contract.approval import ApprovalLimits, JobApproval, StandingApproval
from hansa.contract.envelope import APPROVAL_TYPE, Signed
from hansa.contract.errors import HansaError, Reason
from hansa.contract.raw_keys import key_digest
from hansa.contract.review import count_votes
from node_agent.policy.approvals import Site, checked_approval
from node_agent.policy.policy import Policy, data_holder, policy_of
from tests.support.json_mutants import json_mutants, raw_mutants
from tests.support.tally import report
from tests.support.trust_world import FEDERATION, PROJECT, TrustWorld, build_trust_world

COORDINATORS = "_coordinator"


@pytest.fixture(scope="module")
def world() -> TrustWorld:
    return build_trust_world()


def changed(signed: Signed, key: Ed25519PrivateKey) -> list[tuple[str, Signed]]:
    """Return the envelope with each value of its payload changed once, signed as it was or by the coordinator."""
    value = json.loads(signed.payload)
    payloads = [(one.id, json.dumps(one.of(value), separators=(",", ":")).encode()) for one in json_mutants(value)]
    payloads += [(raw.id, raw.edit(signed.payload)) for raw in raw_mutants(signed.payload)]
    payloads = [(what, payload) for what, payload in payloads if payload != signed.payload]
    found = [(what, replace(signed, payload=payload)) for what, payload in payloads]
    found += [
        (f"{what}:signed-anew", envelope.sign(signed.payload_type, payload, key_id=signed.key_id, key=key))
        for what, payload in payloads
    ]
    return [*found, ("type", replace(signed, payload_type=envelope.JOB_TYPE)), ("name", replace(signed, key_id="ada"))]


def test_evil_every_value_of_a_vote_changed_once_is_no_vote(world: TrustWorld) -> None:
    (bundle,) = world.bundles
    mutants = changed(bundle.votes["rev1"], world.keys[COORDINATORS])
    for what, vote in mutants:
        count = count_votes(
            world.directory, bundle.ref, authorship=bundle.authorship, votes=[vote, bundle.votes["rev2"]]
        )
        assert not count.approved, what

    report("a vote, each value changed once", Counter({"not counted": len(mutants)}))
    assert len(mutants) >= 100


def test_evil_every_value_of_an_authorship_changed_once_is_nobodys(world: TrustWorld) -> None:
    (bundle,) = world.bundles
    mutants = changed(bundle.authorship, world.keys[COORDINATORS])
    for what, authorship in mutants:
        count = count_votes(world.directory, bundle.ref, authorship=authorship, votes=list(bundle.votes.values()))
        assert not count.approved, what

    report("an authorship, each value changed once", Counter({"not counted": len(mutants)}))


@pytest.mark.parametrize("kind", ["job", "standing"])
def test_evil_every_value_of_an_approval_changed_once_is_no_approval(world: TrustWorld, kind: str) -> None:
    mutants = changed(approval(world, kind), world.keys[COORDINATORS])
    for what, signed in mutants:
        with pytest.raises(HansaError) as refused:
            checked_approval(signed, site=Site(FEDERATION, "FI"), directory=world.directory, policy=pinning(world))
        assert refused.value.reason is Reason.APPROVAL_INVALID, what

    report(f"an approval ({kind}), each value changed once", Counter({"refused": len(mutants)}))
    true = approval(world, kind)
    found = checked_approval(true, site=Site(FEDERATION, "FI"), directory=world.directory, policy=pinning(world))
    assert found.approver == "holder-fi"


def approval(world: TrustWorld, kind: str) -> Signed:
    common = {"approval_id": "01990000-0000-7000-8000-000000000001", "federation": FEDERATION, "node": "FI"}
    made: JobApproval | StandingApproval
    if kind == "job":
        made = JobApproval.model_validate(
            {**common, "job_id": common["approval_id"], "job_digest": "sha256:" + "0" * 64}
            | {"approver": "holder-fi", "at": world.now}
        )
    else:
        made = StandingApproval.model_validate(
            {**common, "project": PROJECT, "analysis": world.analysis, "datasets": ("FI-aisnp",)}
            | {"limits": ApprovalLimits(), "approver": "holder-fi", "not_before": world.now}
            | {"not_after": world.now + timedelta(days=1)}
        )
    return envelope.sign(APPROVAL_TYPE, made.to_bytes(), key_id="holder-fi", key=world.keys["holder-fi"])


def pinning(world: TrustWorld) -> Policy:
    holder = world.directory.person("holder-fi")
    assert holder is not None
    entry = data_holder(holder.name, key_digest(holder.signing_key))
    return policy_of({"approval": {"data_holders": [entry]}})
