"""The ComfyUI nodes and the adapters to ComfyUI's own types; the only place that imports comfy."""
