"""Inference: windows, predictor, post-processing, model folders."""
