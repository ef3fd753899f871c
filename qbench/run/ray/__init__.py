"""Cells on the nodes of a Ray cluster, side by side. Begin with `executor`."""
