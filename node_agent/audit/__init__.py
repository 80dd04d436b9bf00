"""The node's append-only record of what it decided."""
