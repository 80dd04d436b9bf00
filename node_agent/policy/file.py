"""``policy.toml`` on the disk."""

from __future__ import annotations

from pathlib import Path

from hansa.contract.errors import HansaError, Reason
from node_agent.durable import write_durably
from node_agent.policy.policy import Policy, parse_policy, to_toml


def load_policy(path: Path) -> Policy:
    """Return the policy in the file; without a file, the one that admits nothing.

    Raises:
        HansaError: ``POLICY_INVALID``; a policy that cannot be read refuses.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Policy()
    except (OSError, UnicodeDecodeError) as error:
        raise HansaError(Reason.POLICY_INVALID, "The policy file cannot be read.", log=str(error)) from error
    return parse_policy(text)


def store_policy(path: Path, policy: Policy) -> None:
    """Write ``policy`` in one step.

    Raises:
        OSError: the policy in the file is still the old one.
    """
    write_durably(path, to_toml(policy).encode())
