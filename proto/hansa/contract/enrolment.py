"""The invitation token that an operator hands to a node.

``hansa2.<node>.<secret>.<fingerprint>.<host:port>.<root digest>``: the node's
name, 256 random bits, the SHA-256 of the enrolment server's CA certificate
(DER), where to enrol, and the SHA-256 of the trust repository's root metadata.
The fingerprint makes the first contact authenticated, and the digest pins what
the node will believe for ever: there is no trust on first use. The operator's
client makes the token; the coordinator gives the secret alone.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NODE_ID, NodeId

_PREFIX: Final = "hansa2"
_DIGEST_BYTES: Final = 32
_ENDPOINT: Final = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Invitation:
    """A parsed token.

    ``ca_fingerprint`` is SHA-256 of the CA's DER, ``trust_root_digest`` of the
    root metadata's bytes; 32 bytes each.
    """

    node: NodeId
    secret: str
    ca_fingerprint: bytes
    endpoint: str
    trust_root_digest: bytes

    def token(self) -> str:
        """Return the token's text."""
        parts = (self.ca_fingerprint, self.endpoint.encode(), self.trust_root_digest)
        return ".".join((_PREFIX, self.node, self.secret, *map(encode, parts)))


def encode(data: bytes) -> str:
    """Return ``data`` as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encode(data) != text:
        raise ValueError("not the one form of these bytes")
    return data


def parse_token(text: str) -> Invitation:
    """Return what ``text`` says.

    Raises:
        HansaError: ``ENROLMENT_REFUSED`` with the field ``token``; the text
            has not the shape of a token.
    """
    try:
        prefix, node, secret, fingerprint, endpoint, root = text.strip().split(".")
        invitation = Invitation(
            NodeId(node), secret, _decode(fingerprint), _decode(endpoint).decode("ascii"), _decode(root)
        )
        digests = (_decode(secret), invitation.ca_fingerprint, invitation.trust_root_digest)
    except ValueError as error:
        raise _not_a_token() from error
    whole = all(len(part) == _DIGEST_BYTES for part in digests)
    if prefix != _PREFIX or not whole or not NODE_ID.fullmatch(node) or not _ENDPOINT.fullmatch(invitation.endpoint):
        raise _not_a_token()
    return invitation


def _not_a_token() -> HansaError:
    return HansaError(
        Reason.ENROLMENT_REFUSED,
        "This is not an invitation token; copy the whole line that `hansa admin node invite` printed.",
        field="token",
    )
