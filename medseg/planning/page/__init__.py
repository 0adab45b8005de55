"""The page of a fingerprint and its plan."""
