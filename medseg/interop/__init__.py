"""Weights of other packages in; standard formats out."""
