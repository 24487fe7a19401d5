"""Remote snapshots: immutable objects of a store, read through a local mapped cache."""
