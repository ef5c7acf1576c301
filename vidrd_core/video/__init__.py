"""Videos on disk: write and read MP4, WebM, GIF and folders of PNGs, with metadata inside; contact sheets.

Arrays here are `[T, H, W, 3]`, uint8 unless said otherwise; `to_uint8` makes them from the core's `[1, 3, T, H, W]`
in [-1, 1].
"""

from .formats import VideoError, estimate_bytes, probe_output
from .frames import to_uint8
from .reading import VideoClip, read_metadata, read_video
from .sheet import ContactSheet, contact_sheet
from .writing import VideoWriter, write_video

__all__ = [
    "ContactSheet",
    "VideoClip",
    "VideoError",
    "VideoWriter",
    "contact_sheet",
    "estimate_bytes",
    "probe_output",
    "read_metadata",
    "read_video",
    "to_uint8",
    "write_video",
]
