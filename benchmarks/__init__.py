"""Benchmarks: each file answers one question, beside its peers in the same run, by ratios."""
