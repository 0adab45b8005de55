"""Whole models of the model zoos: their files, names, classes and pixel statistics."""
