"""Training on the model in memory: rows, objectives, one loop for all of them, estimates and search."""
