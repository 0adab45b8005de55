"""Sharing of work between processes and machines: parts of a list, claims on a shared disk, and Dask clusters."""
