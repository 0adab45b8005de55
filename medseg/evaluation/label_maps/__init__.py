"""Metrics of label maps: overlap, surface distances in mm and volumes."""
