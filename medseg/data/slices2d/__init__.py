"""The view of a 2-D model on the slices of a volume: axis, channels and orientation."""
