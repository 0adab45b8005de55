"""The process that loads the models and predicts one job after the other."""
