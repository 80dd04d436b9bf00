"""The command hansa-coordinator."""
