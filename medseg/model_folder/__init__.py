"""The model folder: settings, labels and weights of a trained model, without code."""
