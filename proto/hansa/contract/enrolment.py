"""The invitation token that an operator hands to a node.

``hansa1.<node>.<secret>.<fingerprint>.<host:port>``: the node's name, 256
random bits, the SHA-256 of the enrolment server's CA certificate (DER), and
where to enrol. The fingerprint makes the first contact authenticated: there is
no trust on first use.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Final

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NODE_ID, NodeId

_PREFIX: Final = "hansa1"
_SECRET_BYTES: Final = 32
_ENDPOINT: Final = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Invitation:
    """A parsed token. ``ca_fingerprint`` is SHA-256 of the CA's DER, 32 bytes."""

    node: NodeId
    secret: str
    ca_fingerprint: bytes
    endpoint: str

    def token(self) -> str:
        """Return the token's text."""
        return ".".join((_PREFIX, self.node, self.secret, encode(self.ca_fingerprint), encode(self.endpoint.encode())))


def encode(data: bytes) -> str:
    """Return ``data`` as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def parse_token(text: str) -> Invitation:
    """Return what ``text`` says.

    Raises:
        HansaError: ``ENROLMENT_REFUSED`` with the field ``token``; the text
            has not the shape of a token.
    """
    parts = text.strip().split(".")
    try:
        prefix, node, secret, fingerprint, endpoint = parts
        place = _decode(endpoint).decode("ascii")
        print_ = _decode(fingerprint)
        whole = len(_decode(secret)) == _SECRET_BYTES and len(print_) == _SECRET_BYTES
    except ValueError as error:
        raise _not_a_token() from error
    if prefix != _PREFIX or not whole or not NODE_ID.fullmatch(node) or not _ENDPOINT.fullmatch(place):
        raise _not_a_token()
    return Invitation(NodeId(node), secret, print_, place)


def _not_a_token() -> HansaError:
    return HansaError(
        Reason.ENROLMENT_REFUSED,
        "This is not an invitation token; copy the whole line that `hansa admin node invite` printed.",
        field="token",
    )
