"""The core of one open file, which all other parts of it share."""
