"""What differs between the video models that ComfyUI loads: families, latent layouts, noise, image conditioning."""
