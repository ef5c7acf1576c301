"""ComfyUI's server, where these nodes run in one; tests and other tools load them without."""

from __future__ import annotations

import sys
from typing import Any


def running_server() -> Any:
    """ComfyUI's ``PromptServer``, or None. Nothing is imported for it: where ComfyUI serves, it is loaded."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
