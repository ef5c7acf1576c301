"""Contact sheets: one row per clip, with its prompt above and the number of each frame, in the whole video, below."""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .frames import each_as_uint8

logger = logging.getLogger(__name__)

Font = ImageFont.FreeTypeFont

_PAPER, _INK, _MUTED, _HAIRLINE = "#ffffff", "#1f2328", "#6e7781", "#d0d7de"
_TEXT_SIZE, _NUMBER_SIZE = 15, 12  # pixels
_MARGIN, _GAP = 20, 6  # pixels around the sheet, between frames
_LINE, _NUMBER_LINE, _ROW_GAP = 21, 18, 18  # heights in pixels
_MIN_WIDTH = 360  # pixels for a prompt above few or narrow frames
_MAX_PROMPT_LINES = 2

# Tried in this order, and only for a prompt with letters that Pillow's own font lacks (it is little more than ASCII).
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "segoeui.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "YuGothM.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
)


@dataclass(frozen=True)
class _Row:
    clip: int
    prompt: str
    numbers: list[int]
    frames: list[Image.Image]  # as they are shown


class ContactSheet:
    """A contact sheet that takes one clip at a time and keeps small frames only, so any number of clips fits in memory.

    frame_numbers: write the running number of each frame below it, from 0 as in `frame_00000.png`.
    cell: longest side of a frame in pixels. Smaller frames are enlarged by a whole factor, larger ones reduced.
    max_columns: of longer clips, so many evenly spaced frames are shown, the first and the last among them.
    max_rows: beyond it every second row goes (then every fourth, ...); the clip numbers say which are left.
    font: a TrueType file; by default Pillow's own, or for letters it lacks the system font that has most of them.
    """

    def __init__(
        self,
        *,
        frame_numbers: bool = True,
        cell: int = 128,
        max_columns: int = 8,
        max_rows: int = 64,
        font: str | os.PathLike[str] | None = None,
    ) -> None:
        if cell < 16 or max_columns < 1 or max_rows < 2:
            raise ValueError(
                f"cell must be at least 16, max_columns 1 and max_rows 2, got {cell}, {max_columns} and {max_rows}"
            )
        self._frame_numbers, self._cell, self._max_columns, self._max_rows = frame_numbers, cell, max_columns, max_rows
        self._font = os.fspath(font) if font is not None else None
        self._rows: list[_Row] = []
        self._clips = self._frames = 0
        self._stride = 1

    def add_row(self, frames: np.ndarray, prompt: str) -> None:
        """Add the next clip, `[T, H, W, 3]`, T >= 1, uint8 or float in [0, 1]; clips may differ in length and size."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or 0 in frames.shape:
            raise ValueError(f"a clip must be [T, H, W, 3] with at least one frame, got {list(frames.shape)}")
        if self._clips % self._stride == 0:
            count = len(frames)
            shown = np.unique(np.linspace(0, count - 1, min(count, self._max_columns)).round().astype(int))
            small = [_fitted(Image.fromarray(frame), self._cell) for frame in each_as_uint8(frames[shown])]
            self._rows.append(_Row(self._clips, prompt, [self._frames + int(i) for i in shown], small))
        self._clips += 1
        self._frames += len(frames)
        if len(self._rows) > self._max_rows:
            self._rows = self._rows[::2]
            self._stride *= 2

    def render(self) -> Image.Image:
        """The sheet so far, RGB. ValueError if it has no row."""
        if not self._rows:
            raise ValueError("a contact sheet needs at least one clip")
        width = max(_MIN_WIDTH, *(len(row.frames) * (row.frames[0].width + _GAP) - _GAP for row in self._rows))
        labels = [f"{row.clip + 1}" if self._clips > 1 else "" for row in self._rows]
        number_font = _load(self._font, _NUMBER_SIZE)
        label_font = _load(self._font, _TEXT_SIZE)
        indent = max(round(label_font.getlength(label)) for label in labels)
        indent += 10 if indent else 0
        prompts, font = _drawable([row.prompt for row in self._rows], self._font)
        texts = [_fit(prompt, width - indent, font) for prompt in prompts]
        # The clip number needs a line of its own even where there is no prompt.
        texts = [lines or [""] * bool(label) for lines, label in zip(texts, labels, strict=True)]
        number_line = _NUMBER_LINE if self._frame_numbers else 0
        heights = [
            len(lines) * _LINE + 4 + row.frames[0].height + number_line
            for row, lines in zip(self._rows, texts, strict=True)
        ]
        height = sum(heights) + _ROW_GAP * (len(heights) - 1)
        sheet = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), _PAPER)
        draw = ImageDraw.Draw(sheet)
        top = _MARGIN
        for row, label, lines, row_height in zip(self._rows, labels, texts, heights, strict=True):
            draw.text((_MARGIN, top + _TEXT_SIZE), label, _MUTED, label_font, anchor="ls")
            for index, line in enumerate(lines):
                draw.text((_MARGIN + indent, top + _TEXT_SIZE + index * _LINE), line, _INK, font, anchor="ls")
            self._draw_frames(sheet, draw, row, top + len(lines) * _LINE + 4, number_font)
            top += row_height + _ROW_GAP
        return sheet

    def _draw_frames(
        self, sheet: Image.Image, draw: ImageDraw.ImageDraw, row: _Row, top: int, font: ImageFont.FreeTypeFont
    ) -> None:
        left = _MARGIN
        for number, frame in zip(row.numbers, row.frames, strict=True):
            sheet.paste(frame, (left, top))
            # Keeps a white frame apart from the paper.
            draw.rectangle((left, top, left + frame.width - 1, top + frame.height - 1), outline=_HAIRLINE)
            if self._frame_numbers:
                place = (left + frame.width / 2, top + frame.height + _NUMBER_LINE - 4)
                draw.text(place, str(number), _MUTED, font, anchor="ms")
            left += frame.width + _GAP


def _fitted(frame: Image.Image, side: int) -> Image.Image:
    """The frame, reduced until no side is above ``side`` pixels, or enlarged by a whole factor as far as that."""
    longest = max(frame.size)
    scale = side / longest if longest > side else side // longest
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return frame.resize((max(1, round(frame.width * scale)), max(1, round(frame.height * scale))), method)


def contact_sheet(
    clips: Sequence[np.ndarray],
    prompts: str | Sequence[str],
    *,
    frame_numbers: bool = True,
    cell: int = 128,
    max_columns: int = 8,
    max_rows: int = 64,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """One row per clip with frame numbers and the prompt, as an RGB image; `ContactSheet` explains the settings.

    clips: `[T, H, W, 3]` arrays, uint8 or float in [0, 1]. prompts: one for all, or one per clip (the last repeats).
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or len(texts) > max(len(clips), 1):
        raise ValueError(
            f"prompts must be one text, or one to {len(clips)} texts for {len(clips)} clips, got {len(texts)}"
        )
    sheet = ContactSheet(frame_numbers=frame_numbers, cell=cell, max_columns=max_columns, max_rows=max_rows, font=font)
    for index, clip in enumerate(clips):
        sheet.add_row(clip, texts[min(index, len(texts) - 1)])
    return sheet.render()


def _fit(text: str, width: int, font: Font) -> list[str]:
    """The text in at most two lines of `width` pixels, cut with an ellipsis."""
    lines: list[str] = []
    while text:
        length = _longest(text, width, font)
        if length < len(text) and len(lines) == _MAX_PROMPT_LINES - 1:
            kept = text[: _longest(text, width - font.getlength("..."), font)]
            lines.append(kept.rstrip(" ,.;") + "...")
            break
        if length < len(text) and " " in text[1 : length + 1]:
            length = text.rindex(" ", 1, length + 1)
        lines.append(text[:length].rstrip())
        text = text[length:].lstrip()
    return lines


def _longest(text: str, width: float, font: Font) -> int:
    """How many characters of `text` fit into `width` pixels; at least one. Bisects, prompts may be very long."""
    low, high = 1, min(len(text), int(width))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _drawable(prompts: Sequence[str], chosen: str | None) -> tuple[list[str], Font]:
    """The prompts as they can be drawn, and one font for all of them."""
    # Line breaks, tabs and characters that no font draws would tear the layout.
    texts = [
        " ".join("".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in prompt).split())
        for prompt in prompts
    ]
    letters = {c for text in texts for c in text if not c.isascii()}
    font = _load(chosen, _TEXT_SIZE)
    lacking = _lacking(font, letters)
    for name in _SYSTEM_FONTS if chosen is None else ():
        if not lacking:
            break
        try:
            other = _load(name, _TEXT_SIZE)
        except OSError:
            continue
        if len(missing := _lacking(other, letters)) < len(lacking):
            font, lacking = other, missing
    if lacking:
        logger.info("no font at hand has %s; choose one with font=FILE", "".join(sorted(lacking)))
    plain = {ord(c): _without_accents(c) for c in lacking}
    return [text.translate(plain) for text in texts], font


def _without_accents(letter: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c)) or "?"


def _lacking(font: Font, letters: set[str]) -> set[str]:
    missing = _glyph(font, chr(0xFFFF))  # no font has a glyph for this noncharacter
    return {c for c in letters if not c.isspace() and _glyph(font, c) == missing}


@functools.lru_cache(maxsize=32)
def _load(name: str | None, size: int) -> Font:
    if name is not None:
        return ImageFont.truetype(name, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, Font), "Pillow without FreeType"
    return font


def _glyph(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
