"""Fingerprint and plan: what a dataset is like, and the experiment that fits it."""
