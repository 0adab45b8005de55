"""The view of a 2D model on the slices of a volume: axis, channels and orientation."""
