"""The node's own database, which only the agent opens."""
