"""Threads, event loops, batching, callbacks and tracing; knows nothing of files."""
