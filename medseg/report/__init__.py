"""The page of an evaluation: figures with intervals, every case, and a viewer for each, in one HTML file."""
