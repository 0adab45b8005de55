"""Import of weights of MONAI networks."""
