"""The trust repository: a TUF repository that every party verifies for itself."""
