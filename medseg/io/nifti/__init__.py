"""NIfTI files: voxels, headers and the geometry that they state."""
