"""The demo: one story on a real file, measured while it is told."""
