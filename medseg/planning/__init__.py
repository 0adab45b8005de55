"""Fingerprint and plan."""
