"""Metrics of instances: average precision, panoptic quality and F1."""
