"""The agent's session with the coordinator."""
