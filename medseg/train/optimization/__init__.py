"""Optimisers: their parameters, steps and learning rates, and the moving average of the weights."""
