"""The policy in force: read from its file, replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node_agent.policy.file import load_policy, store_policy
from node_agent.policy.policy import Policy, policy_digest, policy_of


class PolicyBook:
    """One node's policy. A file that cannot be read refuses to start the agent."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            HansaError: ``POLICY_INVALID``, naming the key at fault.
        """
        self._path = path
        self._policy = load_policy(path)

    def current(self) -> Policy:
        """Return the policy in force."""
        return self._policy

    def digest(self) -> str:
        """Return the digest of the policy in force."""
        return policy_digest(self._policy)

    def view(self) -> dict[str, Any]:
        """Return the policy and its digest as JSON values."""
        return {"policy": self._policy.model_dump(mode="json"), "digest": self.digest()}

    def replace(self, values: Mapping[str, Any]) -> None:
        """Put another policy in force, once it is on disk.

        Raises:
            HansaError: ``POLICY_INVALID``; the old policy stays in force.
        """
        policy = policy_of(values)
        store_policy(self._path, policy)
        self._policy = policy
