"""The mapped file and the view: verbs, and what stands behind each."""
