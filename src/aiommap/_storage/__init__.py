"""Storage backends, which make exact reads: from a mapping or by a descriptor."""
