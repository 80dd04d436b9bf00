"""The Python client that the CLI and notebooks share."""
