"""Draw and save a picture of each image that is tested or predicted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from anomalib.data import Batch, ImageItem, NumpyImageItem
from anomalib.visualization import ImageVisualizer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .names import picture_name
from .picture import Box, Finding, draw_picture, panel_size

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule
    from anomalib.post_processing import PostProcessor
    from lightning.pytorch import Trainer


class NoveltyVisualizer(ImageVisualizer):
    """Write one picture an image, as PNG below ``images`` in the run's folder.

    A picture shows the image beside its heat map, if there is one, and score, threshold, verdict and p-value in words.
    The colours mean the same in all pictures, 1/2 is the threshold. ``picture_name`` names the file; the batch has the
    names, relative to the run's folder, in ``picture``, for the table.

    A model says what its map shows by an attribute ``map_note``, where that is not what the score says. A batch may
    have ``p_value`` (B numbers) and ``box`` (for each image None, or left, top, right, bottom in pixels of its file).

    Args:
        side: Pixels of a square panel's side; panels of another shape have about as many pixels.
        output_dir: Folder of the pictures, instead of ``images``.

    Raises:
        ValueError: If ``side`` is below 32.
    """

    def __init__(self, side: int = 256, output_dir: str | Path | None = None) -> None:
        if side < 32:
            msg = f"side={side} is too small for a picture: give at least 32 pixels."
            raise ValueError(msg)
        super().__init__(output_dir=output_dir)
        self.side = side

    def visualize(
        self, predictions: Batch | ImageItem | NumpyImageItem, model: AnomalibModule | None = None
    ) -> Image.Image | list[Image.Image]:
        """Draw pictures without saving them.

        Args:
            predictions: A batch, or one of its items.
            model: Knows threshold and map; without it, the predictions are taken for scaled ones.

        Returns:
            A picture for an item, a list of them for a batch.
        """
        single = isinstance(predictions, ImageItem | NumpyImageItem)
        pictures = [self._draw(path, image, one) for path, image, one in _images(predictions, model, single=single)]
        return pictures[0] if single else pictures

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: AnomalibModule,
        outputs: Batch,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the pictures of a batch, and put their names on it."""
        root = Path(trainer.default_root_dir)
        folder = Path(self.output_dir or root / "images")
        unnamed = f"image-{dataloader_idx}-{trainer.global_rank}-{batch_idx}"  # images of no file
        outputs.picture = []
        for number, (path, image, finding) in enumerate(_images(outputs, pl_module)):
            target = folder / (picture_name(path) if path else f"{unnamed}-{number}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            save(self._draw(path, image, finding), target)
            inside = target.is_relative_to(root)
            outputs.picture.append((target.relative_to(root) if inside else target).as_posix())
        batch.picture = outputs.picture

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """As for a test batch."""
        self.on_test_batch_end(*args, **kwargs)

    def _draw(self, path: str, pixels: NDArray | Tensor, finding: Finding) -> Image.Image:
        image, size = read_reduced(path, self.side) if path else (as_picture(pixels), None)
        return draw_picture(image, finding, self.side, size)


def save(picture: Image.Image, path: Path) -> None:
    """Save as PNG: complete or not at all, also where another process writes the same picture."""
    draft = path.with_name(f".{path.stem}-{os.getpid()}")
    try:
        # half of Pillow's time at its fastest; without parameters OpenCV takes one filter, not the best of all
        _, content = cv2.imencode(".png", cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))
        draft.write_bytes(content.tobytes())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_reduced(path: str, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image as the model sees it (no EXIF rotation), a large JPEG file at a lower resolution.

    Returns:
        The image, mode ``RGB``, and the width and height of the file.
    """
    with Image.open(path) as file:
        size = file.size
        file.draft("RGB", panel_size(size, side))
        return file.convert("RGB"), size


def as_picture(image: NDArray | Tensor) -> Image.Image:
    """The image of a batch, whose values are normalised: they are stretched to black and white.

    Args:
        image: ``(3, h, w)`` tensor, or ``(h, w, 3)`` array.
    """
    values = image.detach().float().cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) else image
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-6))).round().astype(np.uint8))


def threshold_of(post_processor: PostProcessor | None) -> float | None:
    """The threshold in the unit of the scores that a post-processor gives.

    Returns:
        None where there is none; NaN where it is not known in this unit, since a sensitivity moves it in scaled units.
    """
    if post_processor is None or not post_processor.enable_thresholding or post_processor.image_threshold.isnan():
        return None
    if post_processor.enable_normalization:
        return float(post_processor.normalized_image_threshold)
    return float(post_processor.image_threshold) if post_processor.image_sensitivity == 0.5 else math.nan


def _images(
    batch: Batch | ImageItem | NumpyImageItem, model: AnomalibModule | None, *, single: bool = False
) -> Iterable[tuple[str, NDArray | Tensor, Finding]]:
    """File, pixels and findings of each image."""

    def values(name: str) -> Sequence[Any]:
        value = getattr(batch, name, None)
        return [value] * count if value is None else [value] if single else value

    def floats(name: str) -> list[float | None]:
        return [None if value is None else float(value) for value in values(name)]

    count = 1 if single else len(batch.image)
    threshold = 0.5 if model is None else threshold_of(model.post_processor)
    note = "" if model is None else getattr(model, "map_note", "")
    labels = [None if value is None or threshold is None else bool(value) for value in values("pred_label")]
    scores, p_values = floats("pred_score"), floats("p_value")
    for path, image, score, label, p_value, heat, above, box in zip(
        values("image_path"),
        values("image"),
        scores,
        labels,
        p_values,
        map(_array, values("anomaly_map")),
        map(_array, values("pred_mask")),
        map(_box, values("box")),
        strict=True,
    ):
        finding = Finding(score, threshold, label, p_value, map_note=note, box=box)
        if heat is not None:
            finding.clipped = bool(heat.min() < 0 or heat.max() > 1)
            finding.heat = (255 * np.nan_to_num(heat, nan=1.0).clip(0, 1)).round().astype(np.uint8)
            finding.above = None if above is None else above.astype(bool)
        yield str(path or ""), image, finding


def _array(value: Tensor | NDArray | None) -> NDArray | None:
    """A map as ``(h, w)`` on the CPU."""
    if isinstance(value, Tensor):
        value = value.detach().to(torch.float32).cpu().numpy()
    return None if value is None else value.reshape(value.shape[-2:])


def _box(value: Iterable[float] | None) -> Box | None:
    """Four finite numbers that enclose something, or no box."""
    if value is None:
        return None
    left, top, right, bottom = (float(number) for number in value)
    finite = all(map(math.isfinite, (left, top, right, bottom)))
    return (left, top, right, bottom) if finite and left < right and top < bottom else None
