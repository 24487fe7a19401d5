"""Communication of processes through a file: atomic words, waits, locks."""
