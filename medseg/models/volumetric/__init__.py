"""2D models applied to volumes, and ensembles of models."""
