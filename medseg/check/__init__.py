"""Checks of datasets, images, runs and models: every possible problem with a stable code, its place and its remedy."""
