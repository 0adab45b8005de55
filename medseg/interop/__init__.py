"""Import of models from other packages, and export to standard formats."""
