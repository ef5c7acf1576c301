"""Raw material for a data set: folders, tables, and the layouts that public collections come in, as lists of items.

Everything is local: a row whose file is not there is dropped and counted. :func:`list_source` is the one way in.
"""

from __future__ import annotations

from collections.abc import Callable

from .captioned import list_laion, list_tgif, list_vatex, list_webvid
from .folder import list_folder
from .labelled import list_kinetics, list_moments, list_ucf101, list_videolt
from .listing import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, Item, Listing, SourceSettings
from .tables import list_table

LAYOUTS: dict[str, Callable[[SourceSettings], Listing]] = {
    "folder": list_folder,
    "table": list_table,
    "webvid": list_webvid,
    "tgif": list_tgif,
    "vatex": list_vatex,
    "laion": list_laion,
    "ucf101": list_ucf101,
    "kinetics": list_kinetics,
    "moments": list_moments,
    "videolt": list_videolt,
}


def list_source(settings: SourceSettings) -> Listing:
    """Every item of a source in a fixed order, and what was dropped while listing it.

    Raises:
        FileNotFoundError: the root folder or a list file is not there.
        ValueError: unknown layout, a table without the columns it needs, captions that could belong to several files.
    """
    if settings.layout not in LAYOUTS:
        raise ValueError(f"unknown layout {settings.layout!r}; the known ones are {', '.join(LAYOUTS)}")
    if not settings.root.is_dir():
        raise FileNotFoundError(f"{settings.root}: no such folder")
    return LAYOUTS[settings.layout](settings)


__all__ = ["IMAGE_EXTENSIONS", "LAYOUTS", "VIDEO_EXTENSIONS", "Item", "Listing", "SourceSettings", "list_source"]
