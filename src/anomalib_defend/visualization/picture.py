"""Draw a picture: image, heat map, colour scale and caption, with room for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from anomalib_defend.decision.table import Box

from . import captions
from .colours import coloured

MARGIN, GAP = 8, 5  # pixels around and between the parts
MIN_WIDTH = 256  # room for the words, however narrow the image
LONGEST = 3  # sides of a square panel that the longer side of others has at most
TEXT_SIZE, VERDICT_SIZE = 14, 20  # pixels
LINE, VERDICT_LINE = 18, 28  # heights
EDGE = 2  # beside words, since letters may reach over their own width
BAR = 12  # height of the colour scale
REMEMBERED = 64  # rows of words
SCALE_MARKS = (0.0, 0.5, 1.0)
HEAT = 0.75  # share of the colour over the grey image
PAPER, INK = (255, 255, 255), (0, 0, 0)

PANELS = "anomalib-defend panels"  # number, width and height of the panels, in the file
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass
class Finding:
    """What is known of one image.

    Attributes:
        score: As in the table.
        threshold: What the score is compared with.
        novel: The verdict.
        p_value: Share of normal images at least as novel.
        heat: ``(h, w)`` uint8, the heat map's values times 255; the map covers the whole image.
        above: ``(h, w)`` bool, where the map is above its threshold.
        map_threshold: What the heat map's values are compared with; None where it is not known on the scale of 0 to 1.
        clipped: The map has values outside of [0, 1].
        map_note: What the map shows, where it is not what the score says.
        box: Left, top, right, bottom of the normal object in pixels of the image, ends excluded.
    """

    score: float | None = None
    threshold: float | None = None
    novel: bool | None = None
    p_value: float | None = None
    heat: NDArray[np.uint8] | None = None
    above: NDArray[np.bool_] | None = None
    map_threshold: float | None = None
    clipped: bool = False
    map_note: str = ""
    box: Box | None = None

    def set_heat(self, values: NDArray[Any], threshold: float | None) -> None:
        """Take a map ``(h, w)`` whose scale is 0 to 1; what is no number is the most novel."""
        self.map_threshold = threshold
        self.clipped = bool(values.min() < 0 or values.max() > 1)
        self.heat = (255 * np.nan_to_num(values, nan=1.0).clip(0, 1)).round().astype(np.uint8)

    def caption(self) -> list[str]:
        """The paragraphs below the verdict."""
        paragraphs = [captions.numbers(self.score, self.threshold, self.p_value)]
        if self.heat is not None:
            legend = [captions.map_legend(self.map_threshold)]
            if self.above is not None and self.above.any():
                legend.append(captions.OUTLINE_LEGEND)
            if self.clipped:
                legend.append(captions.CLIPPED_LEGEND)
            paragraphs.append(" ".join(legend))
            if self.map_note:
                paragraphs.append(self.map_note)
        if self.box is not None:
            paragraphs.append(captions.NOVEL_BOX_LEGEND if self.novel else captions.BOX_LEGEND)
        return paragraphs


def draw_picture(image: Image.Image, finding: Finding, side: int, size: tuple[int, int] | None = None) -> Image.Image:
    """Draw image and heat map side by side, below them the colour scale and the caption.

    Args:
        image: The image, mode ``RGB``.
        finding: What is known of it.
        side: Pixels of a square panel's side; others have about as many pixels.
        size: Width and height that the box counts in, if ``image`` is a reduced one.

    Returns:
        The picture, mode ``RGB``; it grows with the caption, so that nothing is cut off.
    """
    size = size or image.size
    panel = panel_size(size, side)
    panels = [image.resize(panel, Image.Resampling.BILINEAR, reducing_gap=2.0)]
    if finding.heat is not None:
        panels.append(heat_panel(panels[0], finding.heat, finding.above))
    if finding.box is not None:
        for one in panels:
            draw_box(one, finding.box, (panel[0] / size[0], panel[1] / size[1]))
    width = max(MIN_WIDTH, len(panels) * (panel[0] + GAP) - GAP)
    rows = [_verdict(finding.novel, width), *(_paragraph(words, width) for words in finding.caption())]
    if finding.heat is not None:
        rows.insert(0, _scale(width))
    height = panel[1] + sum(GAP + row.height for row in rows)
    canvas = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    for index, one in enumerate(panels):
        canvas.paste(one, (MARGIN + index * (panel[0] + GAP), MARGIN))
    canvas.info[PANELS] = f"{len(panels)} {panel[0]} {panel[1]}"
    top = MARGIN + panel[1] + GAP
    for row in rows:
        canvas.paste(row, (MARGIN, top))
        top += row.height + GAP
    return canvas


def panels_of(picture: Image.Image) -> list[tuple[int, int, int, int]]:
    """Where image and heat map are in a picture (left, top, right, bottom); empty if another program has drawn it."""
    try:
        count, width, height = map(int, str(picture.info.get(PANELS, "")).split())
    except ValueError:
        return []
    lefts = [MARGIN + index * (width + GAP) for index in range(count)]
    return [(left, MARGIN, left + width, MARGIN + height) for left in lefts]


def panel_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of a panel for an image: its shape, and a square panel's area unless it is very long."""
    factor = min(side / math.sqrt(size[0] * size[1]), LONGEST * side / max(size))
    return max(1, round(factor * size[0])), max(1, round(factor * size[1]))


def heat_panel(image: Image.Image, heat: NDArray[np.uint8], above: NDArray[np.bool_] | None) -> Image.Image:
    """Lay the coloured map over the grey image, and a line around what is above the threshold."""
    values = Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR)
    panel = Image.blend(image.convert("L").convert("RGB"), coloured(values), HEAT)
    if above is None or not above.any():
        return panel
    mask = np.asarray(Image.fromarray(above).resize(image.size, Image.Resampling.NEAREST))
    inner, outer = outlines(mask)
    for line, colour in ((inner, PAPER), (outer, INK)):  # two colours, of which one is seen on any ground
        panel.paste(colour, mask=Image.fromarray(line))
    return panel


def outlines(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The pixels of a mask that touch others, and the others that touch them (sides, not corners)."""
    wide = np.pad(mask, 1, mode="edge")
    neighbours = np.stack([wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]])
    return mask & ~neighbours.all(axis=0), ~mask & neighbours.any(axis=0)


@cache
def font(size: int) -> Font:
    """Pillow's own font, which is the same on every machine."""
    return ImageFont.load_default(size)


@lru_cache(REMEMBERED)  # most pictures of a run share them
def _scale(width: int) -> Image.Image:
    """The colours of 0 to 1 as they look over middle grey, with their values."""
    row = Image.new("RGB", (width, BAR + LINE), PAPER)
    ramp = np.linspace(0, 255, width).round().astype(np.uint8)
    colours = coloured(Image.fromarray(np.tile(ramp, (BAR, 1))))
    row.paste(Image.blend(Image.new("RGB", colours.size, (128, 128, 128)), colours, HEAT))
    draw = ImageDraw.Draw(row)
    for value in SCALE_MARKS:
        words = f"{value:g}"
        length = font(TEXT_SIZE).getlength(words)
        x = value * (width - 1)
        draw.line([(x, 0), (x, BAR + 2)], INK)
        draw.text((min(max(x - length / 2, EDGE), width - EDGE - length), BAR), words, INK, font(TEXT_SIZE))
    return row


@lru_cache(REMEMBERED)
def _verdict(novel: bool | None, width: int) -> Image.Image:
    """White on black for novel images, black on white for others."""
    ground, ink = (INK, PAPER) if novel else (PAPER, INK)
    row = Image.new("RGB", (width, VERDICT_LINE))
    draw = ImageDraw.Draw(row)
    draw.rectangle([0, 0, width - 1, VERDICT_LINE - 1], ground, INK)
    draw.text((GAP, 2), captions.VERDICTS[novel], ink, font(VERDICT_SIZE))
    return row


@lru_cache(REMEMBERED)
def _paragraph(words: str, width: int) -> Image.Image:
    """Words in as many lines as they need."""
    lines = captions.wrapped(words, width - 2 * EDGE, font(TEXT_SIZE).getlength)
    row = Image.new("RGB", (width, LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(row)
    for number, line in enumerate(lines):
        draw.text((EDGE, number * LINE), line, INK, font(TEXT_SIZE))
    return row


def draw_box(panel: Image.Image, box: Sequence[float], factors: tuple[float, float]) -> None:
    """Draw a frame of two colours, within the panel."""
    edges = []
    for start, end, factor, length in zip(box[:2], box[2:], factors, panel.size, strict=True):
        first = min(max(round(start * factor), 0), length - 1)
        edges.append((first, min(max(round(end * factor) - 1, first), length - 1)))
    (left, right), (top, bottom) = edges
    draw = ImageDraw.Draw(panel)
    draw.rectangle([left, top, right, bottom], outline=INK)
    if right - left > 2 and bottom - top > 2:
        draw.rectangle([left + 1, top + 1, right - 1, bottom - 1], outline=PAPER)
