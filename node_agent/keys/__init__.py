"""The node's keys and certificates."""
