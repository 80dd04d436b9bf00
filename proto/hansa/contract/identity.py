"""Who a certificate speaks for.

Exactly one URI SAN, ``spiffe://<federation>/node/<id>``, compared whole. The
common name is never read: gRPC falls back to it where there is no SAN.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import FEDERATION_NAME, NODE_ID, NodeId

_SCHEME: Final = "spiffe://"


def node_uri(federation: str, node: str) -> str:
    """Return the URI that names ``node`` in its certificate."""
    return f"{_SCHEME}{federation}/node/{node}"


def node_of(certificate: x509.Certificate, federation: str) -> NodeId:
    """Return the node that ``certificate`` names.

    Raises:
        HansaError: ``CERTIFICATE_REFUSED``; there is not exactly one URI SAN,
            or it is not that of a node of this federation.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise HansaError(Reason.CERTIFICATE_REFUSED, log="no readable SAN") from error
    if len(uris) != 1 or len(list(names)) != 1:
        raise HansaError(Reason.CERTIFICATE_REFUSED, log=f"{len(uris)} URI SANs")
    node = uris[0].removeprefix(f"{_SCHEME}{federation}/node/")
    if not NODE_ID.fullmatch(node) or uris[0] != node_uri(federation, node):
        raise HansaError(Reason.CERTIFICATE_REFUSED, log="URI SAN is not a node's")
    return NodeId(node)


def is_federation_name(text: str) -> bool:
    """Say whether ``text`` may name a federation (a lower-case DNS-like name)."""
    return FEDERATION_NAME.fullmatch(text) is not None
