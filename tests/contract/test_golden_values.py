"""Values that two releases must compute alike: written down once, never edited.

A change here breaks a running federation. It needs a new version of what it
changes, beside the old one.
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.contract.digests import CHAIN_START, bundle_digest, canonical, chain_hash, digest
from hansa.contract.enrolment import Invitation, parse_token
from hansa.contract.envelope import JOB_TYPE, sign
from hansa.contract.identity import node_uri
from hansa.contract.ids import NodeId, run_id
from hansa.contract.job import parse_job
from hansa.contract.outbox import Head
from hansa.contract.summary import Array, Summary, summary_bytes

JOB = "0192f0c1-0000-7000-8000-000000000000"


def test_a_run_keeps_its_id() -> None:
    assert run_id(JOB, "FI", 0) == "10a66feafea2e90bbe34f6796627ba37"


def test_a_bundle_keeps_its_digest() -> None:
    assert (
        bundle_digest({"b/x.py": b"1", "Snakefile": b"rule all:\n", "manifest.json": b"{}"})
        == "sha256:6b0f01e31d69d8c51743334d3b4880ed5c8e7f0b353832e836f8f942e5981b48"
    )


def test_digests_and_chains_keep_their_values() -> None:
    assert digest(b"hansa") == "sha256:69e1cee3122726e651f191e907ab6e35a6e793d203e3bb9d81dfba6d1ea81787"
    assert chain_hash(CHAIN_START, b"one").hex() == "4e233ba6ac7032d3894ecea5974fd96176e564b024af45747eb46357af8d2401"
    assert Head().after(b"one").after(b"two") == Head(
        2, bytes.fromhex("b9f0cc527d38ea48d83c4c438121181ab01d99e83415306be2ac88792c40a8f3")
    )


def test_canonical_json_is_that_of_rfc_8785() -> None:
    assert canonical({"b": [1, 2.0, 1e21], "a": "€", "A": None}) == '{"A":null,"a":"€","b":[1,2,1e+21]}'.encode()


def test_a_signature_keeps_its_bytes() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert (
        base64.b64encode(sign(JOB_TYPE, b"{}", key_id="ana", key=key).signature).decode()
        == "+uc1aMoEoS3osMF3AY6WNu/NP2ZbNnGya+VLwomJSJQwyf8tasPQ25+KrBc94UbLvfb21lvgz54XFzNga9vVBQ=="
    )


def test_an_invitation_keeps_its_form() -> None:
    invitation = Invitation(
        NodeId("FI"), base64.urlsafe_b64encode(bytes(32)).decode()[:43], bytes(32), "127.0.0.1:7443", b"\xff" * 32
    )
    assert (
        invitation.token()
        == "hansa2.FI.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        ".MTI3LjAuMC4xOjc0NDM.__________________________________________8"
    )
    assert parse_token(invitation.token()) == invitation


def test_a_node_keeps_its_name_in_certificates() -> None:
    assert node_uri("demo.hansa", "FI") == "spiffe://demo.hansa/node/FI"


def test_a_summary_keeps_its_bytes() -> None:
    axes = {"variant": ("2:136608646:G:A", "2:5:C:T"), "stratum": ("all",)}
    cells: dict[tuple[str, ...], int | float] = {("2:136608646:G:A", "all"): 42}
    summary = Summary(axes, {"ac": Array("int64", ("variant", "stratum"), "sum", cells)}, {"2:5:C:T": "rs7"})
    assert summary_bytes(summary) == (
        b'{"arrays":{"ac":{"axes":["variant","stratum"],"dtype":"int64","merge":"sum","values":[42,null]}},'
        b'"axes":{"stratum":["all"],"variant":["2:136608646:G:A","2:5:C:T"]},'
        b'"notes":{"variant":{"rsid":["","rs7"]}},"v":1}'
    )


SIGNED_JOB = (
    b'{"analysis":{"digest":"sha256:' + b"0" * 64 + b'","name":"allele-frequency","version":"1.0"},'
    b'"datasets":[{"dataset":"FI-lct","node":"FI","snapshot":"sha256:' + b"1" * 64 + b'"}],'
    b'"directory_version":3,"federation":"demo","job_id":"' + JOB.encode() + b'","nonce":"' + b"a" * 32 + b'",'
    b'"not_after":"2026-03-01T13:00:00Z","not_before":"2026-03-01T12:00:00Z","parameters":{"variants":"rs4988235"},'
    b'"passports":{},"project":"lactose","purpose":"","quorum":1,"recipient_key":null,"release_class":"auto",'
    b'"rounds":1,"submitter":"ana","v":1}'
)


def test_a_job_keeps_its_bytes() -> None:
    assert parse_job(SIGNED_JOB).to_bytes() == SIGNED_JOB
