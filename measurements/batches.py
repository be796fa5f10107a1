"""How far a score depends on the batch that an image is in, and whether the labels that change are counted as such.

``python -m measurements.batches IMAGES CHECKPOINT ...``: exports each checkpoint and scores photographs of the folder,
cut to one size, one by one and in batches of 2, 8 and 32, in every precision that the processor has. "Not counted" are
labels that another batch or precision changes, and that ``anomalib-defend score`` would not have counted as undecided.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data.utils import read_image

from anomalib_defend.benchmark.machine import describe, has_bf16
from anomalib_defend.decision.models import Checkpoint, Export
from anomalib_defend.files.images import images_in
from anomalib_defend.scoring.undecided import Undecided

from .speed.report import table

BATCHES = (1, 2, 8, 32)


def photographs(folder: Path, count: int) -> np.ndarray:
    """Photographs spread over a folder, their upper left corners of one size, [N, 3, H, W]."""
    paths = images_in(folder)
    images = [read_image(path, as_tensor=True).numpy() for path in paths[:: max(1, len(paths) // count)][:count]]
    height, width = (min(image.shape[axis] for image in images) for axis in (1, 2))
    return np.stack([image[:, :height, :width] for image in images])


def scores(xml: Path, images: np.ndarray, precision: str, batch: int) -> np.ndarray:
    """Scaled scores [N] of images in batches."""
    import openvino  # noqa: PLC0415 - optional extra

    compiled = openvino.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return np.concatenate([np.array(compiled(part)["pred_score"]).reshape(-1) for part in parts])


def compare(checkpoint: Path, images: np.ndarray, precisions: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each precision, the first of which is what the others are compared with."""
    model = Checkpoint(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        xml = model.load().eval().to_openvino(folder)
        calibration = Export(xml).calibration()
        found = {
            precision: np.stack([scores(xml, images, precision, batch) for batch in BATCHES])
            for precision in precisions
        }
    alone = found[precisions[0]][0]
    centre = 1 - calibration.sensitivity
    rows = []
    for precision, batches in found.items():
        undecided = Undecided.around(calibration, coarse=precision != "f32")
        low, high = calibration.image.scaled(np.array([undecided.low, undecided.high]))
        changed = ((batches > centre) != (batches[0] > centre)).any(0) | ((batches[0] > centre) != (alone > centre))
        counted = (batches[0] >= low) & (batches[0] <= high)
        rows.append(
            {
                "model": model.model_name,
                "precision": precision,
                "batches": float(np.abs(batches - batches[0]).max()),
                f"from {precisions[0]}": float(np.abs(batches[0] - alone).max()),
                "labels that change": int(changed.sum()),
                "not counted": int((changed & ~counted).sum()),
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m measurements.batches", description=__doc__)
    parser.add_argument("folder", type=Path, help="of photographs")
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=128)
    arguments = parser.parse_args()
    images = photographs(arguments.folder, arguments.images)
    precisions = ("f32", "bf16") if has_bf16() else ("f32",)
    print(f"Machine: {describe(1)}. {len(images)} photographs of {images.shape[3]} x {images.shape[2]} pixels.")
    print(table([row for path in arguments.checkpoints for row in compare(path, images, precisions)]))


if __name__ == "__main__":
    main()
