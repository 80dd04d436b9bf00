"""A coordinator's enrolment listener, and nothing else of a coordinator.

Real TLS, real gRPC, real certificates of a real CA; the rules of a token are
the protocol's: bound to the first key that presents it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from coordinator.ca.authority import Authority, Window, create_authority, issue_node, issue_server
from hansa.contract.digests import digest
from hansa.contract.enrolment import Invitation, encode
from hansa.contract.errors import DOMAIN, HansaError, Reason
from hansa.contract.ids import NodeId
from hansa.v1 import enrolment_service_pb2 as wire
from hansa.v1 import enrolment_service_pb2_grpc

FEDERATION = "demo.example"
NODE = NodeId("FI")
SECRET = encode(b"\x07" * 32)
NODE_ENDPOINT = "127.0.0.1:7002"
# Metadata to the coordinator and to enrolment, which compare its digest; what it says is read later.
TRUST_ROOT = b'{"signed": "a root"}'

Change = Callable[[wire.EnrolResponse], None]


def _now() -> datetime:
    return datetime.now(UTC)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass
class EnrolmentDouble(enrolment_service_pb2_grpc.EnrolmentServiceServicer):
    """The service; ``requests`` holds what has reached it."""

    server_ca: Authority = field(default_factory=lambda: create_authority("server CA", _now()))
    node_ca: Authority = field(default_factory=lambda: create_authority("node CA", _now()))
    requests: list[wire.EnrolRequest] = field(default_factory=list)
    lost_replies: int = 0
    change: Change = lambda _reply: None
    bound_to: Any = None

    def Enrol(self, request: wire.EnrolRequest, context: grpc.ServicerContext) -> wire.EnrolResponse:  # noqa: N802
        self.requests.append(request)
        key = x509.load_pem_x509_csr(request.csr_pem.encode()).public_key()
        if request.token_secret != SECRET or (self.bound_to is not None and self.bound_to != key):
            _refuse(context, HansaError(Reason.ENROLMENT_REFUSED))
        assert isinstance(key, ec.EllipticCurvePublicKey)
        self.bound_to = key
        if self.lost_replies:
            self.lost_replies -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the reply is lost")
        reply = self.answer(key)
        self.change(reply)
        return reply

    def answer(self, key: ec.EllipticCurvePublicKey, node: str = NODE) -> wire.EnrolResponse:
        window = Window(_now(), timedelta(days=1))
        certificate = issue_node(self.node_ca, key, federation=FEDERATION, node=node, window=window)
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return wire.EnrolResponse(
            federation=FEDERATION,
            node=node,
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            server_ca_pem=self.server_ca.certificate_pem.decode(),
            node_endpoint=NODE_ENDPOINT,
            key_fingerprint=digest(der),
            trust_root=TRUST_ROOT,
        )


def _refuse(context: grpc.ServicerContext, error: HansaError) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN))
    status = status_pb2.Status(code=int(error.code), message=error.public, details=[detail])
    context.abort_with_status(rpc_status.to_status(status))


@contextlib.contextmanager
def enrolment_listener(
    double: EnrolmentDouble, *, issuer: Authority | None = None, shown: Authority | None = None, name: str = "127.0.0.1"
) -> Iterator[Invitation]:
    """Serve on a free port and yield the invitation to it.

    Args:
        double: the service; the invitation is to its CA.
        issuer: the CA that signs the server's certificate (the double's own).
        shown: the CA certificate that stands in the chain (the issuer's).
        name: what the server's certificate names.
    """
    issuer = issuer or double.server_ca
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = issue_server(issuer, key.public_key(), names=[name], window=Window(_now(), timedelta(days=1)))
    chain = leaf.public_bytes(serialization.Encoding.PEM) + (shown or issuer).certificate_pem
    server = grpc.server(futures.ThreadPoolExecutor(2))
    enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server(double, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem_of(key), chain)]))
    server.start()
    try:
        digest_ = hashlib.sha256(TRUST_ROOT).digest()
        yield Invitation(NODE, SECRET, double.server_ca.fingerprint, f"127.0.0.1:{port}", digest_)
    finally:
        server.stop(None).wait()
