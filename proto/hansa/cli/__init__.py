"""The command hansa."""
