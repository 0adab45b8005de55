"""Calibration: temperatures, and how far probabilities are from frequencies."""
