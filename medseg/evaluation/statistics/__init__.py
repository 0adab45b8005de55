"""Statistics of evaluations: confidence intervals, and tests that compare two methods."""
