"""Training that starts from trained weights: sources, the matching of names, and inflation of kernels."""
