"""Published and local weights for backbones."""
