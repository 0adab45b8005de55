"""Files that belong to an image or a label map: other parts of it, names of labels, tables of instances."""
