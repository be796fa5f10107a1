"""Which images are shown, and small pictures of them as text for a page."""

from __future__ import annotations

import base64
import math
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from anomalib_defend.files.names import from_text
from anomalib_defend.files.usable import READ_ERRORS
from anomalib_defend.visualization.picture import draw_box, panel_size, panels_of
from anomalib_defend.visualization.visualizer import read_reduced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_defend.decision.table import Row

ALL = 1200  # images of which all are shown
SHOWN = 1200  # of more images
MISTAKES = 900  # of those, so that some near the threshold are always among them
SIDE = 176  # pixels of a square picture's side
BYTES = 4800  # of a picture: two for each of 1,000 images are 13 MB as text
_QUALITY, _LESS = 70, 45  # at full size, and of what has to be smaller

Shown = tuple[str, str]
"""Image and heat map as base64 of WebP; the latter is empty where there is none."""


def chosen(rows: Sequence[Row], threshold: float | None) -> list[int]:
    """Numbers of the rows that get a picture: all, or the worst mistakes and what is nearest to the threshold."""
    if len(rows) <= ALL:
        return list(range(len(rows)))
    middle = 0.5 if threshold is None else threshold

    def distance(index: int) -> float:
        return abs((rows[index].score or 0.0) - middle)

    order = sorted(range(len(rows)), key=distance)
    wrong = [index for index in reversed(order) if is_mistake(rows[index])][:MISTAKES]
    taken = set(wrong)
    near = [index for index in order if index not in taken][: SHOWN - len(wrong)]
    return sorted([*wrong, *near])


def is_mistake(row: Row) -> bool:
    """Whether the verdict is known to be wrong."""
    return row.label is not None and row.true_label is not None and row.label is not row.true_label


def encoded(rows: Sequence[Row], folder: Path) -> list[Shown | None]:
    """Small pictures of images; None where neither picture nor image can be read.

    Args:
        rows: Of the table.
        folder: Of the table, which pictures are relative to.
    """
    with ThreadPoolExecutor() as pool:  # Pillow works without Python's lock
        return list(pool.map(lambda row: _encoded(row, folder), rows))


def _encoded(row: Row, folder: Path) -> Shown | None:
    try:
        if row.picture:
            with Image.open(folder / from_text(row.picture)) as file:
                panels = panels_of(file)
                picture = file.convert("RGB")
            return tuple_of([picture.crop(box) for box in panels] or [picture])
    except READ_ERRORS:
        pass  # it was removed: the image itself may be there
    try:
        image, size = read_reduced(from_text(row.path), SIDE)
    except READ_ERRORS:
        return None
    panel = panel_size(size, SIDE)
    image = image.resize(panel, Image.Resampling.BILINEAR)
    if row.box is not None:
        draw_box(image, row.box, (panel[0] / size[0], panel[1] / size[1]))
    return tuple_of([image])


def tuple_of(panels: Sequence[Image.Image]) -> Shown:
    """Image and heat map."""
    return _small(panels[0]), _small(panels[1]) if len(panels) > 1 else ""


def _small(image: Image.Image) -> str:
    """WebP of at most ``BYTES``, as base64."""
    width, height = panel_size(image.size, SIDE)
    content, factor = _webp(image, width, height, _QUALITY), 1.0
    while len(content) > BYTES and factor * min(width, height) > 1:
        factor *= min(0.95, math.sqrt(BYTES / len(content)))
        content = _webp(image, max(1, round(factor * width)), max(1, round(factor * height)), _LESS)
    return base64.b64encode(content).decode("ascii")


def _webp(image: Image.Image, width: int, height: int, quality: int) -> bytes:
    file = BytesIO()
    reduced = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    reduced.save(file, "WEBP", quality=quality, method=1)
    return file.getvalue()
