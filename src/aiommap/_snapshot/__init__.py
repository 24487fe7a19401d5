"""Immutable files: snapshots, and following a file that is replaced."""
