"""Visualisation: slices as arrays (`slice_images`), figures for reports (`figures`), viewer for notebooks (`explore`).

Importing these modules does not import matplotlib; drawing a figure does.
"""
