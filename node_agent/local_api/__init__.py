"""The agent's HTTP API on a unix socket, and its client."""
