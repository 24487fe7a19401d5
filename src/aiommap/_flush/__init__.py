"""Flushes: when and how written bytes become durable."""
