"""Jobs whose images come from a DICOMweb server and whose label maps return to it."""
