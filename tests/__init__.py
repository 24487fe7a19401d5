"""The tests: a folder for each wing, and helpers in ``support``."""
