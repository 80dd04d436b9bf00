"""Sends what was released, until it has arrived."""
