"""VidRD's models as ComfyUI's own types: MODEL, CLIP and VAE."""
