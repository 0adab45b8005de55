"""Search for better settings of an experiment: short trainings, compared by their validation."""
