"""Instances of images and volumes: finding, linking across slices and writing them."""
