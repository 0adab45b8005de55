"""Arrays and their positions in space: volumes, grids, resampling and bounding boxes."""
