"""Training data: what the training scripts read or make."""
