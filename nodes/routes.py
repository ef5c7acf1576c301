"""What the browser asks the server for: GET /vidrd/settings, the presets' values and what suits each VidRD model."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from . import files
from .model_defaults import ModelDefaults, defaults_of, is_of_wans_kind, presets, sampling_defaults
from .server import running_server

logger = logging.getLogger(__name__)

ROUTE = "/vidrd/settings"


def settings() -> dict[str, Any]:
    """The presets' values, how loops close, and by the id of a loader node and its setting, what suits that model.

    A folder with a ``transformer`` is of Wan's kind: its latents come from ComfyUI's own nodes, and its clips are
    chained as its family's.
    """
    folders = {name: files.model_folder(name) for name in files.model_folders()}
    unets = {name: files.weights_path("diffusion_models", name) for name in files.weights("diffusion_models")}
    of_loaders = {"VidRDLoadModel": known(folders), "VidRDLoadUNet": known(unets)}
    return {"presets": presets(), "models": of_loaders, "released": ModelDefaults().to_json(), "loop": loop()}


def loop() -> dict[str, int]:
    """How a loop closes: what :mod:`vidrd_core.reuse.goal` chooses from, and what other families' loops repeat."""
    from ..vidrd_core.reuse.goal import MOST_REPEATED, GoalSettings

    return {
        "most_repeated": MOST_REPEATED,
        "least_overlap": GoalSettings.start_frames,
        "latents": GoalSettings.frames,
    }


def known(paths: dict[str, Path]) -> dict[str, Any]:
    """What suits each model; one whose files say something else than expected is left out."""
    found = {}
    for name, path in paths.items():
        try:
            found[name] = sampling_defaults(path) if is_of_wans_kind(path) else defaults_of(path).to_json()
        except (OSError, ValueError, TypeError) as error:
            logger.warning("What suits the model %s cannot be read: %s", name, error)
    return found


def add_route() -> None:
    """Answer ``ROUTE`` where this runs in ComfyUI's server; it is loaded without one in tests and by other tools."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    async def answer(_: Any) -> Any:
        return web.json_response(await asyncio.to_thread(settings))  # which reads files, while the server goes on

    server.routes.get(ROUTE)(answer)
