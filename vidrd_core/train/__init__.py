"""Training: the loop that every stage shares, and the stages themselves."""
