"""Predict many images into one folder, in one process or many, and record what was predicted."""
