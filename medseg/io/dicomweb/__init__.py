"""Studies of a DICOMweb server: search (QIDO-RS), retrieval (WADO-RS) and storage (STOW-RS)."""
