"""Launchers of kernels: one folder or file per backend. `table` lists the backends, each of which declares itself."""
