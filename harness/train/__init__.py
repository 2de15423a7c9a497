"""Training: one loop for every objective, its clock, its checkpoints."""
