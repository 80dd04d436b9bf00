"""The command hansa-node."""
