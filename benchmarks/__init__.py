"""Benchmarks: one question a file, the peers side by side in one run, ratios."""
