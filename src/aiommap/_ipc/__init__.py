"""What processes share through a file: atomic words, waits, locks."""
