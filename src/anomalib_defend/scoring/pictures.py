"""A picture of each scored image, as tests and predictions write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anomalib_defend.visualization.findings import findings
from anomalib_defend.visualization.names import picture_name
from anomalib_defend.visualization.picture import draw_picture
from anomalib_defend.visualization.visualizer import SIDE, read_reduced, save

from .images import opened

if TYPE_CHECKING:
    from pathlib import Path

    from anomalib.data import ImageBatch


def write_pictures(batch: ImageBatch, model: Any, threshold: float | None, folder: Path, root: Path) -> list[str]:
    """Draw and save the pictures of a batch.

    Args:
        batch: Post-processed.
        model: Knows threshold and map; None for an export.
        threshold: Of an export's scaled scores, where it is known: a sensitivity moves it from 1/2.
        folder: Where the pictures go.
        root: Folder of the table.

    Returns:
        Their names for the table: relative to ``root`` where they are in it, else absolute.
    """
    names, folder, root = [], folder.absolute(), root.absolute()  # readers of the table may work elsewhere
    for path, _, finding in findings(batch, model):
        if model is None and threshold is not None:
            finding.threshold = threshold
        target = folder / picture_name(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        image, size = read_reduced(opened(path), SIDE)
        save(draw_picture(image, finding, SIDE, size), target)
        names.append((target.relative_to(root) if target.is_relative_to(root) else target).as_posix())
    return names
