"""Registers the nodes with ComfyUI, in menu order. Nothing heavy is imported before a node runs."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .files import register_folders
from .frame_nodes import InterpolateFrames, PreviewClip
from .loader_nodes import EmptyLatent, LoadDecoder, LoadModel, LoadUNet
from .report_nodes import SeamReport
from .reuse_nodes import ReuseJoin, ReusePrepare
from .routes import add_route
from .sampling_nodes import ManyClips, ReuseAndDiffuse, SampleFirstClip
from .state_nodes import LoadState, SaveState
from .timeline_nodes import Timeline
from .timeline_routes import register_routes

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadUNet,
    LoadDecoder,
    EmptyLatent,
    SampleFirstClip,
    ReuseAndDiffuse,
    ManyClips,
    Timeline,
    ReusePrepare,
    ReuseJoin,
    SaveState,
    LoadState,
    PreviewClip,
    InterpolateFrames,
    SeamReport,
]


class VidRDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> VidRDExtension:
    register_folders()
    add_route()
    register_routes()
    return VidRDExtension()
