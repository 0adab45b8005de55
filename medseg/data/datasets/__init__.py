"""Datasets: layouts, case tables, splits and phantoms."""
