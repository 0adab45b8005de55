"""MONAI's own networks, for weights that were trained with them."""
