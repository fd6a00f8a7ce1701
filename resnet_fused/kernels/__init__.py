"""How: one folder or file per backend, each of which declares itself in `table`."""
