"""Image backbones shared by several model families."""
