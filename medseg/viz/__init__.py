"""Pictures: slices as arrays (`slices`), figures for reports (`figures`), a look in notebooks (`explore`).

Importing these modules does not import matplotlib; making a figure does.
"""
