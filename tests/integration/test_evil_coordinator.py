"""T-C1 to T-C3: each field of each message of a breached coordinator, changed once, against a whole node.

The node is real (``besieged_node``); the coordinator has every key that ever
lay at a coordinator (``evil_coordinator``). The mutants come from the
descriptors and from the values (``mutants``). Each meets a fresh job that its
researcher signed honestly, so that what the node does with it is the mutant's
doing. Afterwards the node's own books are compared with what was seen: no
execution and no release but the honest ones.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa.contract.digests import digest
from hansa.contract.errors import HansaError
from hansa.contract.raw_keys import key_text
from hansa.contract.sealing import SealContext, open_sealed
from hansa.v1 import node_service_pb2 as wire
from hansa.v1 import trust_service_pb2
from tests.support import honest_frames
from tests.support.besieged_node import Outcome
from tests.support.honest_frames import GUIDE
from tests.support.json_mutants import json_mutants
from tests.support.mutants import Guide, Mutant, SameError, distinct, json_inside, message_inside, message_mutants
from tests.support.siege import NODE, RESEARCHER, Siege, siege
from tests.support.tally import report

pytestmark = pytest.mark.slow

Frame = wire.CoordinatorFrame


@pytest.fixture
async def besieged(tmp_path: Path) -> AsyncIterator[Siege]:
    """A node at which honest jobs run. At the end they still do, and its books show nothing else."""
    async with siege(tmp_path) as found, found.node.running():
        await found.open()
        yield found
        await found.recover()
        released = found.node.released
        assert await found.baseline() == released
        await found.node.assert_unbroken()


async def test_evil_every_field_of_an_offer_changed_once(besieged: Siege) -> None:
    """The frame, the command, the offer, the envelope and the signed job, as the coordinator relays them."""
    evil, node = besieged.evil, besieged.node
    example = evil.numbered(await evil.session(), besieged.honest())
    mutants = list(message_mutants(example, guide(besieged)))

    for mutant in mutants:
        frame = evil.numbered(await evil.session(), besieged.honest())
        await attempt(besieged, mutant, frame, evil.send)

    assert len(distinct(mutants)) >= 300
    report("an offer, each field changed once", node.outcomes, node.reasons)


async def test_evil_every_value_of_a_job_changed_and_signed_by_the_coordinator(besieged: Siege) -> None:
    """It has no key of a researcher's: it signs with its own, in the researcher's name and in the log's."""
    evil, node = besieged.evil, besieged.node
    own = Ed25519PrivateKey.generate()
    log_key = besieged.world.keys["_coordinator"]
    example = json.loads(besieged.spec().to_bytes())
    mutants = list(json_mutants(example, others_of_a_job(besieged)))

    for number, mutant in enumerate(mutants):
        spec = besieged.spec()
        payload = json.dumps(mutant.of(json.loads(spec.to_bytes()))).encode()
        key, name = ((own, RESEARCHER), (log_key, RESEARCHER), (log_key, "_coordinator"))[number % 3]
        body = besieged.offer(spec, besieged.sign(payload, key=key, key_id=name))
        outcome = await node.attempt(mutant.id, lambda body=body: evil.command(body))  # type: ignore[misc]
        assert outcome is Outcome.REFUSED, mutant.id

    assert len(mutants) >= 150
    report("a job, each value changed and signed by the coordinator", node.outcomes, node.reasons)


async def test_evil_every_field_of_every_other_frame_changed_once(besieged: Siege) -> None:
    evil, node = besieged.evil, besieged.node

    for kind in honest_frames.frames():
        if kind.WhichOneof("frame") == "welcome" or b"offer" in kind.command.body:
            continue
        for mutant in message_mutants(lively(besieged, kind, (await evil.session()).epoch), GUIDE):
            frame = lively(besieged, kind, (await evil.session()).epoch)
            await attempt(besieged, mutant, frame, evil.send)
        await besieged.recover()

    report("other frames, each field changed once", node.outcomes, node.reasons)
    # What ends a session is in the node's audit log too.
    assert node.reasons["PROTOCOL_VIOLATION"] > 0
    assert node.reasons["NOTE_INVALID"] > 0


async def test_evil_every_field_of_a_welcome_changed_once(besieged: Siege) -> None:
    evil, node = besieged.evil, besieged.node
    example = wire.CoordinatorFrame(welcome=evil.welcome(evil.epoch))

    for mutant in message_mutants(example, GUIDE):

        async def attach(mutant: Mutant[Frame] = mutant) -> None:
            evil.bend[Frame] = mutant.edit
            await evil.hang_up()
            await evil.command(besieged.honest())
            if "generation" in mutant.id:
                # Once it has said that its store was restored, it is held to that.
                evil.generation += 1
            await besieged.recover()

        await node.attempt(mutant.id, attach)

    report("a welcome, each field changed once", node.outcomes, node.reasons)


@pytest.mark.parametrize("answer", [trust_service_pb2.GetMetadataResponse, trust_service_pb2.GetTargetResponse])
async def test_evil_every_field_of_a_trust_answer_changed_once(besieged: Siege, answer: type[Any]) -> None:
    """Each time there is a new version to fetch, whose first answer is spoilt."""
    evil, node, world = besieged.evil, besieged.node, besieged.world

    for mutant in message_mutants(answer(chunk=b"x" * 100), GUIDE):

        async def news(mutant: Mutant[Any] = mutant) -> None:
            world.change(witnesses=world.directory.witnesses[::-1])
            besieged.mirror()
            evil.bend[answer] = mutant.edit
            begun = node.refreshes()
            await evil.command(wire.CommandBody(trust_update=wire.TrustUpdate()))
            await node.until(lambda: node.refreshes() > begun)
            evil.bend.clear()

        await node.attempt(mutant.id, news)
        # An honest answer brings the node to where the world is.
        await evil.command(wire.CommandBody(trust_update=wire.TrustUpdate()))
        await node.until(lambda: node.trusted() == world.directory.version)

    report(f"{answer.DESCRIPTOR.name}, each field changed once", node.outcomes, node.reasons)


async def test_evil_every_field_of_a_renewed_certificate_changed_once(besieged: Siege) -> None:
    evil, node = besieged.evil, besieged.node
    answer = wire.RenewCertificateResponse

    for mutant in message_mutants(answer(certificate_pem="-----BEGIN CERTIFICATE-----\nx"), GUIDE):

        async def renewal(mutant: Mutant[wire.RenewCertificateResponse] = mutant) -> None:
            await ask_for_renewal(besieged, mutant.edit)

        await node.attempt(mutant.id, renewal)

    stranger = answer(certificate_pem=evil.credential(NODE).certificate_pem.decode())
    assert not await ask_for_renewal(besieged, lambda _: stranger)


async def ask_for_renewal(besieged: Siege, edit: Callable[[Any], Any]) -> bool:
    """Have the node renew its certificate and spoil the answer; say whether the node took it.

    Return once the node is attached again. What it refused it asks for anew,
    and then the answer is honest.
    """
    evil, node = besieged.evil, besieged.node
    epoch, renewed = (await evil.session()).epoch, node.count("certificate_renewed")
    refused = node.count("certificate_not_renewed")
    evil.bend[wire.RenewCertificateResponse] = edit
    await evil.command(wire.CommandBody(renew_now=wire.RenewNow()))
    await node.until(
        lambda: node.count("certificate_renewed") > renewed or node.count("certificate_not_renewed") > refused
    )
    taken = node.count("certificate_not_renewed") == refused
    if not taken:
        await evil.hang_up()
        await node.until(lambda: node.count("certificate_renewed") > renewed)
    await node.until(lambda: evil.attached_epoch > epoch + (not taken))
    return taken


async def test_evil_an_answer_to_an_upload_says_nothing(besieged: Siege) -> None:
    evil, node = besieged.evil, besieged.node

    for mutant in message_mutants(wire.UploadSummaryResponse(), GUIDE):
        evil.bend[wire.UploadSummaryResponse] = mutant.edit
        outcome = await node.attempt(mutant.id, lambda: evil.command(besieged.honest()))
        assert outcome is Outcome.HONEST


async def test_evil_a_job_of_somebody_whom_only_the_coordinator_knows(besieged: Siege) -> None:
    key = Ed25519PrivateKey.generate()
    for name in ("mallory", "root", "_coordinator", "FI"):
        payload = besieged.spec().to_bytes().replace(b'"submitter":"ada"', f'"submitter":"{name}"'.encode())
        body = besieged.offer(besieged.spec(), besieged.sign(payload, key_id=name, key=key))
        await refused(besieged, body, "SUBMITTER_NOT_ADMITTED", "JOB_INVALID")


async def test_evil_a_node_signs_no_job(besieged: Siege) -> None:
    """A real key of the directory, but of a node: it is no researcher's."""
    spec = besieged.spec(submitter=RESEARCHER)
    await refused(
        besieged,
        besieged.offer(spec, besieged.sign(spec.to_bytes(), key=besieged.world.keys["ES"])),
        "SIGNATURE_INVALID",
    )


async def test_evil_the_envelope_of_one_job_in_the_offer_of_another(besieged: Siege) -> None:
    one, other = besieged.honest(), besieged.honest()
    swapped = wire.CommandBody()
    swapped.CopyFrom(one)
    swapped.offer.job.CopyFrom(other.offer.job)

    await refused(besieged, swapped, "JOB_INVALID")


async def test_evil_a_job_signed_for_other_nodes_does_not_run_here(besieged: Siege) -> None:
    spec = besieged.spec()
    elsewhere = spec.model_copy(update={"datasets": spec.datasets[1:], "quorum": 1})

    await refused(besieged, besieged.offer(elsewhere), "JOB_INVALID")


async def test_evil_another_recipient_than_the_researchers_own_is_refused(besieged: Siege) -> None:
    """T-C3, even where the researcher's own key has signed it: the directory says who reads for whom."""
    stranger = key_text(X25519PrivateKey.generate().public_key())

    await refused(besieged, besieged.offer(besieged.spec(recipient_key=stranger)), "RECIPIENT_MISMATCH")


async def test_evil_another_recipient_put_into_a_signed_job_is_refused(besieged: Siege) -> None:
    bob = besieged.world.directory.person("bob")
    assert bob is not None
    assert bob.recipient_key is not None
    spec = besieged.spec(recipient_key=bob.recipient_key)
    signed = besieged.sign(besieged.spec(job_id=spec.job_id, nonce=spec.nonce).to_bytes())
    forged = besieged.offer(spec, signed)
    forged.offer.job.payload = spec.to_bytes()

    await refused(besieged, forged, "SIGNATURE_INVALID")


async def test_evil_a_directory_that_is_only_claimed_to_be_newer(besieged: Siege) -> None:
    spec = besieged.spec(directory_version=besieged.world.directory.version + 7)

    await refused(besieged, besieged.offer(spec), "DIRECTORY_BEHIND")


async def test_evil_a_sealed_summary_is_the_researchers_alone_and_the_same_bytes_each_time(besieged: Siege) -> None:
    """The coordinator takes it and says that it did not: it gets the same ciphertext again, and can open none."""
    evil, node, world = besieged.evil, besieged.node, besieged.world
    ada = world.directory.person(RESEARCHER)
    assert ada is not None
    plain, before = node.released, len(evil.uploads)
    body = besieged.honest(recipient_key=ada.recipient_key)
    node.released, evil.lose_uploads = b"", 2

    async def lose() -> None:
        await evil.command(body)
        for number in (1, 2):
            await node.until(lambda number=number: len(evil.uploads) == before + number)  # type: ignore[misc]
            await besieged.recover()

    await node.attempt("sealed", lose)
    contents = {upload.content for upload in evil.uploads[before:]}
    assert len(evil.uploads) == before + 3
    assert len(contents) == 1
    (sealed,) = contents
    assert b"people" not in sealed
    context = SealContext(body.offer.run_id, 1, digest(body.offer.job.payload))
    assert open_sealed(sealed, world.recipients[RESEARCHER], context) == plain
    for key in (X25519PrivateKey.generate(), world.recipients["bob"], world.recipients[NODE]):
        with pytest.raises(HansaError):
            open_sealed(sealed, key, context)
    # Sealing differs each time, by design: the books are compared without it.
    node.released, evil.uploads[before:] = plain, [replace(one, content=plain) for one in evil.uploads[before:]]


async def refused(besieged: Siege, body: wire.CommandBody, *reasons: str) -> None:
    """Send an offer that must be refused for one of ``reasons``."""
    known = sum(besieged.node.reasons[reason] for reason in reasons)
    outcome = await besieged.node.attempt("refused", lambda: besieged.evil.command(body))

    assert outcome is Outcome.REFUSED
    assert sum(besieged.node.reasons[reason] for reason in reasons) > known, besieged.node.reasons


async def attempt(besieged: Siege, mutant: Mutant[Frame], honest: Frame, send: Callable[[Frame], Any]) -> None:
    try:
        frame = mutant.of(honest)
    except SameError:
        return
    await besieged.node.attempt(mutant.id, lambda: send(frame))


def lively(besieged: Siege, kind: Frame, epoch: int) -> Frame:
    """Return a frame of the kind with the numbers of the session that stands."""
    evil, frame = besieged.evil, Frame()
    frame.CopyFrom(kind)
    name = kind.WhichOneof("frame")
    if name == "command":
        body = wire.CommandBody.FromString(kind.command.body)
        frame.command.epoch, frame.command.seq = epoch, evil.cursor.seq + 1
        frame.command.prev_hash, frame.command.body = evil.cursor.hash, body.SerializeToString(deterministic=True)
    elif name == "event_ack":
        frame.event_ack.epoch, frame.event_ack.upto_seq = epoch, evil.event_head.seq
    return frame


def others_of_a_job(besieged: Siege) -> dict[str, Any]:
    """Return by path values of the same kind that belong to somebody or something else."""
    bob = besieged.world.directory.person("bob")
    assert bob is not None
    return {
        "submitter": "bob",
        "recipient_key": bob.recipient_key,
        "job_id": str(uuid4()),
        "nonce": secrets.token_hex(16),
        "datasets.[].node": "IT",
        "datasets.[].dataset": "IT-lct",
        "release_class": "dual",
        "parameters.variants": "2:136608646:G:A",
    }


def guide(besieged: Siege) -> Guide:
    payload = json_inside(others_of_a_job(besieged))
    body = message_inside(
        wire.CommandBody,
        Guide(
            inside={"hansa.v1.Envelope.payload": payload},
            others={"hansa.v1.Offer.job_id": str(uuid4()), "hansa.v1.Signature.key_id": "bob"},
        ),
    )
    return Guide(inside={"hansa.v1.Command.body": body})
