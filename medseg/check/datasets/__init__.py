"""Checks of a dataset: its lists of files, and comparisons between cases and across splits."""
