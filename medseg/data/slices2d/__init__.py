"""How a 2-D model sees the slices of a volume."""
