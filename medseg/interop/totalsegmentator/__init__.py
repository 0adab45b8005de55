"""Import of trained tasks of TotalSegmentator."""
