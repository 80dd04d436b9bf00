"""A certificate speaks for exactly one node, by one URI."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from hansa.contract.errors import CATALOGUE, Code, HansaError, Reason
from hansa.contract.identity import is_federation_name, node_of, node_uri

KEY = Ed25519PrivateKey.from_private_bytes(b"\3" * 32)
START = datetime(2026, 1, 1, tzinfo=UTC)


def certificate(*names: x509.GeneralName) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FI")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, None)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def test_a_node_is_named_by_its_uri() -> None:
    assert node_of(certificate(uri(node_uri("demo", "FI"))), "demo") == "FI"


@pytest.mark.parametrize(
    "names",
    [
        (),
        (uri("spiffe://demo/node/FI"), uri("spiffe://demo/node/GB")),
        (uri("spiffe://demo/node/FI"), x509.DNSName("localhost")),
        (x509.DNSName("FI"),),
        (uri("spiffe://other/node/FI"),),
        (uri("spiffe://demo/node/"),),
        (uri("spiffe://demo/node/fi"),),
        (uri("spiffe://demo/node/FI/x"),),
        (uri("spiffe://demo/node/FI%0A"),),
        (uri("SPIFFE://demo/node/FI"),),
        (uri("spiffe://demo/coordinator/FI"),),
        (uri("FI"),),
    ],
    ids=str,
)
def test_any_other_name_is_refused_and_the_common_name_is_never_read(names: tuple[x509.GeneralName, ...]) -> None:
    with pytest.raises(HansaError) as caught:
        node_of(certificate(*names), "demo")
    assert caught.value.reason is Reason.CERTIFICATE_REFUSED


@pytest.mark.parametrize(("text", "fits"), [("demo.hansa", True), ("Demo", False), ("", False), ("a/b", False)])
def test_a_federation_has_a_plain_name(text: str, fits: bool) -> None:
    assert is_federation_name(text) is fits


def test_an_error_tells_the_caller_less_than_our_log() -> None:
    error = HansaError(Reason.ENROLMENT_REFUSED, field="token", log="bound to another key")
    assert error.public == CATALOGUE[Reason.ENROLMENT_REFUSED].public
    assert "bound to another key" in str(error)
    assert "bound to another key" not in error.public
    assert error.code is Code.PERMISSION_DENIED


def test_the_codes_are_grpcs() -> None:
    import grpc

    numbers = {status.name: status.value[0] for status in grpc.StatusCode}
    assert {code.name: code.value for code in Code}.items() <= numbers.items()
