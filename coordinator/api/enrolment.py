"""``EnrolmentService``: how a node joins. The caller has nothing but an invitation."""

# Names and signatures of methods are the protocol's.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from coordinator.api.guard import Context
from coordinator.services.enrolment import Enrolled, Issuer, enrol_node
from coordinator.services.trust import root_of_digest
from coordinator.store.database import Database
from hansa.runtime.clock import Clock
from hansa.v1 import enrolment_service_pb2 as wire
from hansa.v1 import enrolment_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a new node is told besides its certificate."""

    server_ca_pem: str
    node_endpoint: str


class EnrolmentServicer(enrolment_service_pb2_grpc.EnrolmentServiceServicer):
    """Parse, one call, convert."""

    def __init__(self, database: Database, clock: Clock, issuer: Issuer, welcome: Welcome) -> None:
        """Take what the one method needs."""
        self._database = database
        self._clock = clock
        self._issuer = issuer
        self._welcome = welcome

    async def Enrol(self, request: wire.EnrolRequest, context: Context) -> wire.EnrolResponse:
        """Exchange an invitation for a certificate."""
        now = self._clock()

        def work(session: Session) -> tuple[Enrolled, bytes]:
            # Before the invitation is redeemed: a node that cannot have its root stays outside.
            root = root_of_digest(session, request.trust_root_digest)
            enrolled = enrol_node(session, self._issuer, secret=request.token_secret, csr_pem=request.csr_pem, now=now)
            return enrolled, root

        enrolled, root = await self._database.run(work)
        return wire.EnrolResponse(
            federation=self._issuer.federation,
            node=enrolled.node,
            certificate_pem=enrolled.certificate_pem,
            server_ca_pem=self._welcome.server_ca_pem,
            node_endpoint=self._welcome.node_endpoint,
            key_fingerprint=enrolled.key_fingerprint,
            trust_root=root,
        )
