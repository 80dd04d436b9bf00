"""Turns source files into immutable dataset snapshots."""
