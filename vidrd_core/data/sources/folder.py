"""A folder of videos and images, each with its caption in a text file of the same name."""

from __future__ import annotations

from .listing import BROKEN, IMAGE_EXTENSIONS, MISSING, NOT_UTF8, VIDEO_EXTENSIONS, Listing, MediaFiles, SourceSettings


def list_folder(settings: SourceSettings) -> Listing:
    """Media below the root, subfolders too, with the caption of ``clip.txt`` (UTF-8) for ``clip.mp4``.

    A file without a caption is kept, since captions can come later (from a table, a label or a model); a caption
    without its file is dropped.

    Raises:
        ValueError: ``clip.txt`` could belong to several files, or ``clip.txt`` and ``clip.mp4.txt`` both exist.
    """
    listing, media = Listing(), MediaFiles(settings.root, settings.kind)
    owners: dict[str, str] = {}
    for name in media.names:
        stem = name.rpartition(".")[0]
        texts = [text for text in (f"{stem}.txt", f"{name}.txt") if (settings.root / text).is_file()]
        if len(texts) > 1:
            raise ValueError(f"{name} has two captions in {settings.root}, {texts[0]} and {texts[1]}; keep one")
        captions: tuple[str, ...] = ()
        if texts:
            if texts[0] in owners:
                raise ValueError(
                    f"{texts[0]} in {settings.root} could be the caption of {owners[texts[0]]} and of {name}; "
                    f"name captions {stem}.mp4.txt and so on, or keep one file (videos: {' '.join(VIDEO_EXTENSIONS)}; "
                    f"images: {' '.join(IMAGE_EXTENSIONS)})"
                )
            owners[texts[0]] = name
            try:
                text = " ".join((settings.root / texts[0]).read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                listing.drop(name, NOT_UTF8, str(error))
                continue
            except OSError as error:
                listing.drop(name, BROKEN, str(error))
                continue
            captions = (text,) if text else ()
        listing.add(media.item(name, captions=captions))
    for path in sorted(settings.root.rglob("*.txt")):
        text = path.relative_to(settings.root).as_posix()
        if settings.kind is None and text not in owners:
            listing.drop(text, MISSING, "a caption without its video or image")
    return listing
