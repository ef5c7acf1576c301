"""Sampling one clip: denoising, schedulers, seeds, corrections of drift, decoding in windows, the state of a video."""
