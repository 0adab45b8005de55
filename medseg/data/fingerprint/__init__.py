"""Measurements of the cases of a dataset, from which plans and normalisations are derived."""
