"""Time of a training: the steps that fit into a budget, and the time that is left."""
