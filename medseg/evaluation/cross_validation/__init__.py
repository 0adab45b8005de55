"""Tables, confidence intervals, comparison and post-processing of cross-validated runs."""
