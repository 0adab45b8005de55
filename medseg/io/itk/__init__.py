"""Files that SimpleITK reads: NRRD, MetaImage and natural images, and segmentations of 3D Slicer."""
