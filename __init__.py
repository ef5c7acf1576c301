"""VidRD for ComfyUI: entry point of the node pack. Importing it without ComfyUI does nothing."""

try:
    import folder_paths as _folder_paths  # noqa: F401  (only ComfyUI has it)
except ImportError:
    _inside_comfyui = False
else:
    _inside_comfyui = bool(__package__)

if _inside_comfyui:
    from .nodes.extension import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
