"""Models of several networks that find different labels, and images whose intensities are resampled raw."""
