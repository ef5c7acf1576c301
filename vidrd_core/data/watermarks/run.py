"""Remove watermarks: estimate the watermarks of a folder of videos, show them, write the videos without them.

Videos are taken together by size, since a watermark is at the same place in videos of one size. Per size a folder below
``watermarks`` holds ``mask.png``, which may be edited by hand before the removal, ``picture.png`` to look at, and
``gradient.npz`` which tells videos with the watermark from those without.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ...files import replacing, write_json
from ...video.reading import FileSource
from ...video.writing import VideoWriter
from ..captioning.key_frames import read_candidates
from ..captioning.table import GrowingTable
from ..engines import EngineSettings, run_in_order
from ..media import FILE_ERRORS
from ..sources import Item, SourceSettings, list_source
from .estimation import EstimationSettings, Watermark, estimate, video_gradient
from .removal import Rectangle, inpaint, largest_clear

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # height, width

_MASK, _PICTURE, _GRADIENT = "mask.png", "picture.png", "gradient.npz"


@dataclass(frozen=True)
class RemovalSettings:
    """What is done with the estimated watermarks."""

    method: str = "inpaint"  # or "crop"
    presence: float = 0.3  # from which a video counts as marked: 0 without, 1 with the watermark
    grow: int = 2  # pixels to take away around the mask
    radius: float = 3.0  # of inpainting, pixels
    min_share: float = 0.5  # of the picture that a crop must leave, else the video is inpainted
    quality: float = 9.0  # of the MP4 written, 0 to 10

    def __post_init__(self) -> None:
        if self.method not in ("inpaint", "crop"):
            raise ValueError(f"method must be inpaint or crop, got {self.method!r}")
        if self.grow < 0 or not self.radius > 0 or not 0 < self.min_share <= 1:
            raise ValueError(
                "grow must be at least 0, radius above 0 and min_share in (0, 1], got "
                f"{self.grow}, {self.radius} and {self.min_share}"
            )


@dataclass(frozen=True)
class WatermarkSettings:
    """A run of the removal."""

    source: SourceSettings
    output: Path  # folder: clean/ for the videos, watermarks/ for what was found, report.jsonl
    estimation: EstimationSettings = EstimationSettings()
    removal: RemovalSettings = RemovalSettings()
    engine: EngineSettings = EngineSettings()
    estimate_only: bool = False  # stop when the masks are written, to look at them
    seed: int = 0  # which videos the estimate is made from, where there are more than it takes

    @property
    def found(self) -> Path:
        return self.output / "watermarks"

    @property
    def clean(self) -> Path:
        return self.output / "clean"


def remove_watermarks(settings: WatermarkSettings) -> Counter[str]:
    """Estimate what is not estimated yet, then clean what is not clean yet; how many videos of this run became what.

    Raises ValueError where the output was begun with other settings or the source has no video.
    """
    items = list_videos(settings.source)
    _no_two_for_one_file(items)
    _same_settings(settings)
    sizes = dict(zip((i.name for i in items), run_in_order(video_size, items, settings.engine), strict=True))
    groups: dict[Size, list[Item]] = defaultdict(list)
    for item in items:
        size = sizes[item.name]
        if size is not None:
            groups[size].append(item)
    for size, group in sorted(groups.items()):
        if not (settings.found / _name(size) / _MASK).exists():
            estimate_group(size, group, settings)
        if (settings.found / _name(size) / _MASK).exists():
            load_watermark(settings.found / _name(size))  # a bad mask is an error before it has spoilt every video
    if settings.estimate_only:
        logger.info("look at the pictures in %s, then run again without estimate_only", settings.found)
        return Counter()
    return _clean_all(items, settings)


def list_videos(source: SourceSettings) -> list[Item]:
    """The videos of a source. ValueError where there is none."""
    items = [item for item in list_source(source).items if item.kind == "video"]
    # Stretches of one file share the file, which is cleaned as a whole.
    files = list(dict.fromkeys(item.path for item in items if item.span is None))
    if not files:
        raise ValueError(f"{source.root} holds no video files")
    return [Item(path.relative_to(source.root).as_posix(), path, "video") for path in files]


def video_size(item: Item) -> Size | None:
    """(height, width) of a video as it is shown; None for a broken one."""
    try:
        image = read_candidates(item.path, 1, side=1 << 20).images[0]
    except FILE_ERRORS as error:
        logger.warning("%s", error)
        return None
    return image.shape[0], image.shape[1]


def estimate_group(size: Size, group: list[Item], settings: WatermarkSettings) -> Watermark | None:
    """Estimate the watermark of the videos of one size and write what was found; None if they are too few."""
    chosen = sorted(group, key=lambda item: hashlib.sha256(f"{settings.seed}:{item.name}".encode()).digest())
    chosen = chosen[: settings.estimation.max_videos]
    work = functools.partial(_gradient, frames=settings.estimation.frames_per_video)
    gradients = [g for g in run_in_order(work, chosen, settings.engine) if g is not None and g.shape[1:] == size]
    if len(gradients) < settings.estimation.min_videos:
        logger.warning(
            "%s: %d readable videos are too few to estimate a watermark from (%d are needed); they are copied as they "
            "are, unless you put a mask into %s",
            *(_name(size), len(gradients), settings.estimation.min_videos, settings.found / _name(size) / _MASK),
        )
        return None
    watermark = estimate(gradients, settings.estimation)
    share = float(watermark.mask.mean())
    logger.info("%s: %s in %d videos", _name(size), f"{share:.2%} masked" if watermark else "none", len(gradients))
    _save(settings.found / _name(size), watermark, _examples(chosen))
    return watermark


def load_watermark(folder: Path) -> Watermark:
    """A watermark with the mask of ``mask.png``, as estimated or as edited by hand (white: watermark).

    ValueError where the mask has not the videos' size, OSError where it is no picture.
    """
    with Image.open(folder / _MASK) as image:
        mask = np.asarray(image.convert("L")) > 127
    if _name((mask.shape[0], mask.shape[1])) != folder.name:
        raise ValueError(f"{folder / _MASK} is {mask.shape[1]}x{mask.shape[0]}, the videos are {folder.name}")
    gradient = np.zeros((2, *mask.shape), np.float32)
    matte, videos = np.zeros(mask.shape, np.float32), 0
    if (folder / _GRADIENT).exists():
        with np.load(folder / _GRADIENT, allow_pickle=False) as stored:
            # Stored in half precision, whose sums overflow.
            gradient = stored["gradient"].astype(np.float32)
            matte, videos = stored["matte"], int(stored["videos"])
    return Watermark(mask, gradient, matte, videos)


def clean_video(item: Item, settings: WatermarkSettings) -> dict[str, Any]:
    """Write one video without its watermark, or as it is where it has none; a row of the report. Never raises for
    what is wrong with its file."""
    try:
        size = video_size(item)
        if size is None:
            return {"source": item.name, "action": "broken"}
        folder = settings.found / _name(size)
        watermark = load_watermark(folder) if (folder / _MASK).exists() else None
        if watermark is None or not watermark:
            return {"source": item.name, "action": "copied", "reason": "no watermark", "file": _copy(item, settings)}
        presence = 1.0
        # A mask that somebody drew has no gradient to look for.
        if watermark.gradient.any():
            presence = watermark.presence(video_gradient(item.path, settings.estimation.frames_per_video))
        facts = {"source": item.name, "presence": round(presence, 3)}
        if presence < settings.removal.presence:
            return facts | {"action": "copied", "reason": "not in this video", "file": _copy(item, settings)}
        return facts | _rewrite(item, watermark, settings)
    except FILE_ERRORS as error:
        return {"source": item.name, "action": "broken", "reason": str(error)}


def _clean_all(items: list[Item], settings: WatermarkSettings) -> Counter[str]:
    report = GrowingTable(settings.output / "report.jsonl", "source")
    todo = [item for item in items if item.name not in report.keys]
    logger.info("%d videos, %d of them done already", len(items), len(items) - len(todo))
    counts: Counter[str] = Counter()
    work = functools.partial(clean_video, settings=settings)
    for item, row in zip(todo, run_in_order(work, todo, settings.engine), strict=True):
        row = row or {"source": item.name, "action": "broken", "reason": "the process died"}
        report.append([row])
        counts[row["action"]] += 1
        if row["action"] == "broken":
            logger.warning("%s: %s", item.name, row.get("reason", "cannot be read"))
    logger.info("%s: %s", settings.clean, dict(counts) or "nothing was left to do")
    return counts


def _rewrite(item: Item, watermark: Watermark, settings: WatermarkSettings) -> dict[str, Any]:
    removal, action = settings.removal, "inpainted"
    window: Rectangle | None = None
    if removal.method == "crop":
        clear = _clear_part(watermark.mask, removal)
        if clear.height * clear.width >= removal.min_share * watermark.mask.size:
            window, action = clear, "cropped"
    source = FileSource(item.path)
    target = _target(item, settings, ".mp4")
    try:
        with VideoWriter(target, source.fps, quality=removal.quality) as writer:
            for _, frame in source.frames():
                if window is not None:
                    kept = window.cut(frame)
                else:
                    kept = inpaint(frame, watermark.mask, removal.grow, removal.radius)
                writer.write(kept[None])
    except FILE_ERRORS:
        # The writer keeps what it has got, which is good for people and wrong for training data.
        target.unlink(missing_ok=True)
        raise
    _copy_caption(item, settings)
    return {"action": action, "file": target.relative_to(settings.clean).as_posix()}


def _clear_part(mask: np.ndarray, removal: RemovalSettings) -> Rectangle:
    try:
        return largest_clear(mask, removal.grow)
    except ValueError:
        return Rectangle(0, 0, 0, 0)


def _gradient(item: Item, frames: int) -> np.ndarray | None:
    try:
        return video_gradient(item.path, frames)
    except FILE_ERRORS as error:
        logger.warning("%s", error)
        return None


def _target(item: Item, settings: WatermarkSettings, suffix: str) -> Path:
    name = PurePosixPath(item.path.relative_to(settings.source.root).as_posix())
    target = settings.clean / name.with_suffix(suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _copy(item: Item, settings: WatermarkSettings) -> str:
    target = _target(item, settings, item.path.suffix)
    with replacing(target) as partial:
        shutil.copyfile(item.path, partial)
    _copy_caption(item, settings)
    return target.relative_to(settings.clean).as_posix()


def _copy_caption(item: Item, settings: WatermarkSettings) -> None:
    """A caption file goes along, so that the cleaned folder is a source like the first."""
    for caption in (item.path.with_suffix(".txt"), item.path.with_name(item.path.name + ".txt")):
        if caption.is_file():
            shutil.copyfile(caption, _target(item, settings, ".txt"))


def _examples(items: Iterable[Item], count: int = 3) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    for item in items:
        try:
            frames += read_candidates(item.path, 1, side=1 << 20).images
        except FILE_ERRORS:
            continue
        if len(frames) == count:
            break
    return frames


def _save(folder: Path, watermark: Watermark, frames: list[np.ndarray]) -> None:
    """The mask last: where it is, the rest is whole."""
    gradient = watermark.gradient.astype(np.float16)
    with replacing(folder / _GRADIENT, keep_suffix=True) as partial:
        np.savez_compressed(partial, gradient=gradient, matte=watermark.matte, videos=watermark.videos)
    for name, picture in ((_PICTURE, show(watermark, frames)), (_MASK, watermark.mask.astype(np.uint8) * 255)):
        with replacing(folder / name, keep_suffix=True) as partial:
            Image.fromarray(picture).save(partial)


def show(watermark: Watermark, frames: list[np.ndarray]) -> np.ndarray:
    """A picture to judge the mask by: the matte, then each frame, with the mask in red, and without the watermark."""
    grey = np.clip(128 + watermark.matte, 0, 255).astype(np.uint8)
    rows = [[np.repeat(grey[..., None], 3, axis=2), np.repeat(watermark.mask[..., None] * np.uint8(255), 3, axis=2)]]
    rows[0].append(np.zeros_like(rows[0][0]))
    for frame in frames:
        if frame.shape[:2] != watermark.mask.shape:
            continue
        red = frame.copy()
        red[watermark.mask] = (red[watermark.mask] // 2 + np.array([127, 0, 0])).astype(np.uint8)
        rows.append([frame, red, inpaint(frame, watermark.mask)])
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def _no_two_for_one_file(items: Iterable[Item]) -> None:
    """A video without its watermark is an MP4, so of ``a.avi`` and ``a.mp4`` one would write over the other."""
    owners: dict[PurePosixPath, str] = {}
    for item in items:
        owner = owners.setdefault(PurePosixPath(item.name).with_suffix(".mp4"), item.name)
        if owner != item.name:
            raise ValueError(f"{owner} and {item.name} would both become one MP4; rename one of them")


def _name(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _same_settings(settings: WatermarkSettings) -> None:
    path = settings.output / "settings.json"
    values = {k: v for k, v in asdict(settings).items() if k not in ("engine", "output", "estimate_only")}
    now = json.loads(json.dumps(values, default=str))
    if path.exists():
        then = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
        # Before a video was cleaned, other ways of cleaning are still open.
        if (settings.output / "report.jsonl").exists() and changed or {"source", "estimation"} & set(changed):
            raise ValueError(
                f"{settings.output} was begun with other settings of {', '.join(changed)}; choose another output, "
                "or delete it"
            )
    write_json(path, now, sort_keys=True)
