"""The node's folder of its trust: the root that it pinned, and what was verified from it on."""

from __future__ import annotations

from pathlib import Path

from hansa.contract.errors import HansaError, Reason
from hansa.trust.client import TrustClient
from node_agent.config import PINNED_ROOT


class NoSource:
    """No coordinator: nothing can be fetched."""

    def metadata(self, role: str, version: int, most_bytes: int) -> bytes:  # noqa: ARG002 - of the protocol
        """Refuse."""
        raise HansaError(Reason.COORDINATOR_UNREACHABLE)

    def target(self, path: str, sha256: str, most_bytes: int) -> bytes:  # noqa: ARG002
        """Refuse."""
        raise HansaError(Reason.COORDINATOR_UNREACHABLE)


def offline_client(folder: Path) -> TrustClient:
    """Return a client of what ``folder`` holds, which asks nobody.

    Raises:
        HansaError: ``TRUST_UNKNOWN``; no root was pinned.
    """
    return TrustClient(folder, pinned_root(folder), NoSource())


def pinned_root(folder: Path) -> bytes:
    """Return the root metadata that the invitation named.

    Raises:
        HansaError: ``TRUST_UNKNOWN``; there is none.
    """
    try:
        return (folder / PINNED_ROOT).read_bytes()
    except OSError as error:
        raise HansaError(
            Reason.TRUST_UNKNOWN, "The node has no pinned root; see `hansa-node enrol`.", log=str(error)
        ) from error
