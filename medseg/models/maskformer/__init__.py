"""MaskFormer and Mask2Former."""
