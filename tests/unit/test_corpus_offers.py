"""The corpus of offers and approvals that a node must not take, S15 to S23."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hansa.contract.digests import digest
from hansa.contract.directory import DirectoryPerson, Role
from hansa.contract.envelope import JOB_TYPE, VOTE_TYPE, Signed, sign
from hansa.contract.errors import HansaError
from hansa.contract.job import JobSpec
from hansa.contract.raw_keys import key_text
from node_agent.offers import SignedOffer
from node_agent.store.models import RunRow
from tests.support.agent import (
    NODE,
    SNAPSHOT,
    Bench,
    approve_job,
    approved_by,
    job,
    make_bench,
    offer,
    person_key,
    pinned,
    signed_as,
)
from tests.support.corpus import Entry, check_words, entries_of

pytestmark = pytest.mark.slow

OFFERS = [entry for entry in entries_of("offers") if "approval" not in entry.input]
APPROVALS = [entry for entry in entries_of("offers") if "approval" in entry.input]
OPEN = {"admission": {"submitters": ["*"], "analyses": ["allele-frequency@1.0"]}, "release": {"mode": "auto"}}
POLICY = {**OPEN, "approval": {"data_holders": [pinned("holder-fi")]}}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path, POLICY)
    yield made
    made.database.close()


@pytest.mark.parametrize("entry", OFFERS, ids=str)
async def test_a_bad_offer_is_declined_for_its_reason_and_runs_nothing(bench: Bench, entry: Entry) -> None:
    made = await offered(bench, entry.input)
    run = await bench.offer(made)
    assert (run.state, run.reason) == (entry.expect["state"], entry.expect["reason"])
    if entry.expect.get("first_stands"):
        kept = await bench.database.run(lambda session: session.get_one(RunRow, made.run_id).payload)
        assert kept != made.payload
        return
    await bench.step()
    assert made.run_id not in bench.enqueued


async def test_the_same_offer_without_a_fault_is_taken(bench: Bench) -> None:
    run = await bench.offer(offer(job()))
    assert (run.state, run.reason) == ("QUEUED", "")


async def offered(bench: Bench, recipe: Mapping[str, Any]) -> SignedOffer:
    spec = changed(job(), recipe.get("job", {}))
    if "directory" in recipe:
        DIRECTORY[recipe["directory"]](bench)
        if recipe["directory"] != "newer":
            spec = spec.model_copy(update={"directory_version": bench.world.directory.version})
    if "votes" in recipe:
        (bundle,) = bench.world.bundles
        votes = bench.world.vote(replace(bundle, votes={}), *recipe["votes"])
        bench.world.bundles = [votes]
        bench.world.publish()
        bench.trust_now()
    bench.now += timedelta(hours=recipe.get("hours", 0))
    if "again" in recipe:
        first = job()
        await bench.offer(offer(first))
        spec = job(**{recipe["again"]: getattr(first, recipe["again"])})
    return offer(spec, signed=SIGNED[recipe.get("signed", "rightly")](spec))


def changed(spec: JobSpec, changes: Mapping[str, Any]) -> JobSpec:
    for name, value in changes.items():
        match name:
            case "analysis.digest":
                update: Any = {"analysis": spec.analysis.model_copy(update={"digest": value})}
            case "nodes":
                update = {"datasets": tuple(ref for ref in spec.datasets if ref.node in value), "quorum": 1}
            case "snapshot":
                assert value != SNAPSHOT
                update = {"datasets": tuple(ref.model_copy(update={"snapshot": value}) for ref in spec.datasets)}
            case _:
                update = {name: value}
        spec = spec.model_copy(update=update)
    return spec


def signed_with(spec: JobSpec, *, kind: str = JOB_TYPE, name: str = "ada", key: str = "ada") -> Signed:
    return sign(kind, spec.to_bytes(), key_id=name, key=person_key(key))


SIGNED: Mapping[str, Callable[[JobSpec], Signed]] = {
    "rightly": signed_as,
    "none": lambda spec: replace(signed_as(spec), key_id="", signature=b""),
    "zeros": lambda spec: replace(signed_as(spec), signature=bytes(64)),
    "other_key": lambda spec: signed_with(spec, key="bob"),
    "other_name": lambda spec: signed_with(spec, name="bob", key="bob"),
    "renamed": lambda spec: signed_with(spec, name="bob"),
    "other_type": lambda spec: signed_with(spec, kind=VOTE_TYPE),
    "relabelled": lambda spec: replace(signed_with(spec, kind=VOTE_TYPE), payload_type=JOB_TYPE),
}


def people(bench: Bench, change: Callable[[DirectoryPerson], DirectoryPerson | None]) -> None:
    """Put a directory in force in which ada is what ``change`` says."""
    found = [change(one) if one.name == "ada" else one for one in bench.world.directory.people]
    bench.trust_changes(
        people=tuple(one for one in found if one is not None),
        projects=tuple(p.model_copy(update={"researchers": ("bob",)}) for p in bench.world.directory.projects)
        if None in found
        else bench.world.directory.projects,
    )


def new_key(person: DirectoryPerson) -> DirectoryPerson:
    return person.model_copy(update={"signing_key": key_text(person_key("a new key").public_key())})


def no_researcher(person: DirectoryPerson) -> DirectoryPerson:
    return person.model_copy(update={"roles": (Role.AUDITOR,)})


DIRECTORY: Mapping[str, Callable[[Bench], None]] = {
    "new_key": lambda bench: people(bench, new_key),
    "no_researcher": lambda bench: people(bench, no_researcher),
    "struck_off": lambda bench: people(bench, lambda _person: None),
    "newer": lambda bench: bench.trust_changes(),
}


@pytest.mark.parametrize("entry", APPROVALS, ids=str)
async def test_a_bad_approval_is_refused_and_the_job_waits_on(tmp_path: Path, entry: Entry) -> None:
    bench, recipe = make_bench(tmp_path, POLICY, approved=False), entry.input["approval"]
    spec = job(submitter=recipe.get("submitter", "ada"))
    if "submitter" in recipe:
        allow(bench, recipe["submitter"])
        spec = spec.model_copy(update={"directory_version": bench.world.directory.version})
    run = await bench.offer(offer(spec))
    assert run.state == "AWAITING_APPROVAL", run.reason
    approval = approve_job(
        spec,
        approver=recipe.get("approver", "holder-fi"),
        node=recipe.get("node", NODE),
        job_digest=recipe.get("digest", digest(spec.to_bytes())),
    )
    with pytest.raises(HansaError) as caught:
        await bench.approvals.approve(run.run_id, approved_by(approval, recipe.get("signer", "")))
    assert caught.value.reason == entry.expect["approval"]
    check_words(caught.value.public)
    assert (await bench.run(run.run_id)).state == "AWAITING_APPROVAL"
    bench.database.close()


def allow(bench: Bench, name: str) -> None:
    """Make ``name`` a researcher of the project as well."""
    directory = bench.world.directory
    bench.trust_changes(
        people=tuple(
            one.model_copy(update={"roles": (*one.roles, Role.RESEARCHER)}) if one.name == name else one
            for one in directory.people
        ),
        projects=tuple(
            project.model_copy(update={"researchers": (*project.researchers, name)}) for project in directory.projects
        ),
    )
