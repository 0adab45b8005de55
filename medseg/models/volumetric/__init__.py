"""2-D models and several models applied to volumes."""
