"""Checks of one case: its files, grids, intensities and labels. Each file is read once."""
