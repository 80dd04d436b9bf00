"""The coordinator's own database."""
