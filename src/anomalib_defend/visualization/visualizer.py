"""Draw and save a picture of each image that is tested or predicted."""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from anomalib.data import Batch, ImageItem, NumpyImageItem
from anomalib.visualization import ImageVisualizer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .findings import findings
from .names import picture_name
from .picture import PANELS, Finding, draw_picture, panel_size

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule
    from lightning.pytorch import Trainer


logger = logging.getLogger(__name__)

SIDE = 256
"""Pixels of a square panel's side, where nothing else is given."""


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

    def __init__(self, side: int = SIDE, output_dir: str | Path | None = None) -> None:
        if side < 32:
            msg = f"side={side} is too small for a picture: give at least 32 pixels."
            raise ValueError(msg)
        super().__init__(output_dir=output_dir)
        self.side = side
        self._drawn: Path | None = None  # folder of this run's pictures

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
        pictures = [self._draw(path, image, one) for path, image, one in findings(predictions, model, single=single)]
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
        del batch  # the outputs are the batch, with its predictions
        root = Path(trainer.default_root_dir)
        folder = Path(self.output_dir or root / "images")
        self._drawn = folder
        unnamed = f"image-{dataloader_idx}-{trainer.global_rank}-{batch_idx}"  # images of no file
        outputs.picture = []
        for number, (path, image, finding) in enumerate(findings(outputs, pl_module)):
            target = folder / (picture_name(path) if path else f"{unnamed}-{number}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            save(self._draw(path, image, finding), target)
            inside = target.is_relative_to(root)
            outputs.picture.append((target.relative_to(root) if inside else target).as_posix())

    def teardown(self, trainer: Trainer, pl_module: AnomalibModule, stage: str) -> None:
        """Say where the pictures are."""
        del pl_module, stage
        if self._drawn is not None and trainer.is_global_zero:
            logger.info("Pictures: %s", self._drawn)
        self._drawn = None

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """As for a test batch."""
        self.on_test_batch_end(*args, **kwargs)

    def _draw(self, path: str, pixels: NDArray[Any] | Tensor, finding: Finding) -> Image.Image:
        image, size = read_reduced(path, self.side) if path else (as_picture(pixels), None)
        return draw_picture(image, finding, self.side, size)


def save(picture: Image.Image, path: Path) -> None:
    """Save as PNG: complete or not at all, also where another process or thread writes the same picture."""
    draft = path.with_name(f".{path.stem}-{os.getpid()}-{threading.get_native_id()}")
    try:
        # half of Pillow's time at its fastest; without parameters OpenCV takes one filter, not the best of all
        _, content = cv2.imencode(".png", cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))
        draft.write_bytes(_with_text(content.tobytes(), PANELS, picture.info.get(PANELS, "")))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _with_text(png: bytes, name: str, words: str) -> bytes:
    """A PNG file with a text in it, which OpenCV cannot write."""
    if not words:
        return png
    chunk = b"tEXt" + name.encode("latin-1") + b"\0" + words.encode("latin-1")
    head = len(b"\x89PNG\r\n\x1a\n") + 25  # the signature, and the chunk that comes first
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:head] + framed + png[head:]


def read_reduced(path: str | BinaryIO, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image as the model sees it (no EXIF rotation), a large JPEG file at a lower resolution.

    Returns:
        The image, mode ``RGB``, and the width and height of the file.
    """
    with Image.open(path) as file:
        size = file.size
        file.draft("RGB", panel_size(size, side))
        return file.convert("RGB"), size


def as_picture(image: NDArray[Any] | Tensor) -> Image.Image:
    """The image of a batch, whose values are normalised: they are stretched to black and white.

    Args:
        image: ``(3, h, w)`` tensor, or ``(h, w, 3)`` array.
    """
    values = image.detach().float().cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) else image
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-6))).round().astype(np.uint8))
