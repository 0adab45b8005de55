"""DICOM series: headers, the files of a series, and the stack of its slices."""
