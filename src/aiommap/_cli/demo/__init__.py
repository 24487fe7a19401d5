"""The demo: what the library does, shown and measured on a real file."""
