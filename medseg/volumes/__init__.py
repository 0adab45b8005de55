"""Arrays with their position in space: volumes, grids and resampling."""
