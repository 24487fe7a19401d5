"""Where exact reads come from: a mapping or a descriptor."""
