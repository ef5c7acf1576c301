"""Training: the loop that all tasks share, and the tasks: image VAE, text encoder, U-Net, video decoder."""
