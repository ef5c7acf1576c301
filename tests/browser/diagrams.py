"""Thumbnails of the examples whose weights are not at hand: how clips join, drawn from the example's own numbers."""

from __future__ import annotations

from model_examples import NUM_CLIPS, VideoModel
from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN = 532, 36  # pixels; the side is that of the other thumbnails
BACKGROUND, INK, FAINT = "#1f2328", "#f0f3f6", "#9198a1"
LEAD_IN, OVERLAP, NEW = "#59636e", "#bf8700", "#1f6feb"
BAR, STEP, TOP = 34, 74, 132  # height of a bar, distance of two, and where the first begins
THIN = 6  # width of a lead-in


def diagram(model: VideoModel) -> Image.Image:
    """The clips of an example as bars below each other, and the whole video below them, all in one scale."""
    picture = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 30), model.title, INK, font(38))
    words = f"{NUM_CLIPS} clips of {model.clip_frames} frames, one video of {model.lengths[-1]}"
    draw.text((MARGIN, 80), words, FAINT, font(18))
    scale = (SIDE - 2 * MARGIN) / model.lengths[-1]
    lead = model.lead_in * THIN / scale  # its one frame alone could not be seen
    for number, end in enumerate(model.lengths):
        begin = end - model.added_frames if number else 0
        parts: list[tuple[float, float, str, str]] = [(begin, end, NEW, "from noise")]
        if number:
            known = begin - model.overlap_frames
            parts = [(begin, end, NEW, "new"), (known, begin, OVERLAP, ""), (known - lead, known, LEAD_IN, "")]
        bars(draw, TOP + number * STEP, parts, scale)
    bars(draw, TOP + NUM_CLIPS * STEP + 14, [(0, model.lengths[-1], NEW, "the video")], scale)
    names = [("overlap: the video's last frames again", OVERLAP), ("new frames", NEW)]
    names += [("lead-in: one frame, made anew and dropped", LEAD_IN)] if lead else []
    for row, (name, color) in enumerate(names):
        top = SIDE - MARGIN - 26 * (len(names) - row) + 6
        draw.rectangle((MARGIN, top, MARGIN + 16, top + 16), color)
        draw.text((MARGIN + 28, top - 2), name, INK, font(17))
    return picture


def bars(draw: ImageDraw.ImageDraw, top: float, parts: list[tuple[float, float, str, str]], scale: float) -> None:
    """Boxes from one frame to another, in a colour, with a word in them."""
    for begin, end, color, word in parts:
        left, right = MARGIN + begin * scale, MARGIN + end * scale
        if right <= left:
            continue
        draw.rectangle((left, top, right - 1, top + BAR), color)
        if word:
            draw.text(((left + right) / 2, top + BAR / 2), word, INK, font(16), "mm")


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
