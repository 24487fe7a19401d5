"""Ranges of a file handed out once: the pure table, and the allocator over it."""
