"""Preparation of images for a network: what a source is, and what is cropped, resampled and predicted before the network sees it."""
