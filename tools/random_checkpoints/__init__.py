"""Checkpoints with random weights and every tensor of the published layout, for tests and benches."""
