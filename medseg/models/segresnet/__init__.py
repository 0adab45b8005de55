"""MONAI's SegResNet."""
