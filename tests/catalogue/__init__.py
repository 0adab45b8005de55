"""The catalogue of bad inputs and faults: each entry is created, given to medseg, and its answer is compared with a table.

``python -m tests.catalogue`` runs all entries and prints a table; the same entries are tests.
"""
