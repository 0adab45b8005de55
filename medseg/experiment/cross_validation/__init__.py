"""Training, predicting and aggregating the folds of a cross-validation."""
