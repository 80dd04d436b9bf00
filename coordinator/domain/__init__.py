"""Decisions of the coordinator; pure."""
