"""The card on which a node gives its public keys to the federation's operators, out of band."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from hansa.contract.digests import DIGEST, canonical, digest
from hansa.contract.directory import Key, NodeName, Organisation
from hansa.contract.errors import HansaError, Reason
from hansa.contract.strict import Strict, parse_strict, pattern

_CARD_BYTES: Final = 8 << 10
_Digest = Annotated[str, pattern(DIGEST.pattern)]


class NodeCard(Strict):
    """What ``hansa-node card`` prints. ``fingerprint`` is what both sides compare by voice."""

    v: Literal[1] = 1
    node: NodeName
    organisation: Organisation | None = None
    signing_key: Key
    agreement_key: Key
    tls_fingerprint: _Digest
    fingerprint: _Digest


def parse_card(data: bytes) -> NodeCard:
    """Return the card in ``data``.

    Raises:
        HansaError: ``DIRECTORY_INVALID``; not a card, or its fingerprint is
            not that of its other fields.
    """
    card = parse_strict(NodeCard, data, reason=Reason.DIRECTORY_INVALID, what="node card", most_bytes=_CARD_BYTES)
    rest = card.model_dump(mode="json", exclude_unset=True, exclude={"fingerprint"})
    if digest(canonical(rest)) != card.fingerprint:
        raise HansaError(
            Reason.DIRECTORY_INVALID, "The card's fingerprint is not that of its fields.", field="fingerprint"
        )
    return card
