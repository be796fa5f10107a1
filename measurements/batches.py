"""How far a score depends on the batch that an image is in, and whether the labels that change are counted as such.

``python -m measurements.batches IMAGES CHECKPOINT ...``: exports each checkpoint and scores photographs of the folder,
cut to one size, one by one and in batches of 2, 8 and 32, in every precision that the processor has. The largest
difference of a scaled score between batches and from float32, that of a raw score as a share of the threshold, the same
of ``anomalib-defend score``, what it measures on the first photographs, its labels that another batch or precision
changes, and those of them that it would not have counted as undecided.

``--alike FOLDER`` writes images to train on that differ by noise alone, as those of a fixed camera do, and ends.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data.utils import read_image
from PIL import Image

from anomalib_defend.benchmark.machine import describe, has_bf16
from anomalib_defend.decision.exports import OpenVINOGraph
from anomalib_defend.decision.models import Checkpoint, Export
from anomalib_defend.files.images import images_in
from anomalib_defend.scoring.exported import ExportedScorer, rounding
from anomalib_defend.scoring.models import MEASURED
from anomalib_defend.scoring.undecided import Undecided

from .speed.report import table

BATCHES = (1, 2, 8, 32)


def photographs(paths: list[str]) -> np.ndarray:
    """Photographs, their upper left corners of one size, [N, 3, H, W]."""
    images = [read_image(path, as_tensor=True).numpy() for path in paths]
    height, width = (min(image.shape[axis] for image in images) for axis in (1, 2))
    return np.stack([image[:, :height, :width] for image in images])


def write_alike(photograph: Path, folder: Path, count: int) -> None:
    """One photograph with noise and in another brightness each time, normal and, with more noise, novel."""
    pixels, rng = np.asarray(Image.open(photograph).convert("RGB"), dtype=float), np.random.default_rng(0)
    for name, noise in (("normal", 4), ("novel", 30)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noisy = pixels + rng.normal(0, noise, pixels.shape) + rng.normal(0, 3)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:03d}.png")


def raw_scores(export: Export, images: np.ndarray, precision: str, batch: int) -> np.ndarray:
    """Raw scores [N] of images in batches."""
    import openvino  # noqa: PLC0415 - optional extra

    assert isinstance(export.graph, OpenVINOGraph)  # noqa: S101 - it is a .xml
    model = export.graph.with_raw_outputs({"image": export.endings["image"]})
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    last = len(model.outputs) - 1
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return np.concatenate([np.array(compiled(part)[last], dtype=float).reshape(-1) for part in parts])


def score_scores(export: Export, paths: list[str], precision: str, batch: int) -> np.ndarray:
    """Raw scores [N] as `score` computes them, which resizes in float32 where the graph's resize can be left out."""
    scorer = ExportedScorer(export, None, precision, maps=False, parallel=1)
    images = [scorer.prepare(path) for path in paths]
    size = min(batch, len(images)) if scorer.size else 1
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    scores = [scorer.score([""] * len(part), part).raw_score.numpy() for part in parts]
    return np.concatenate(scores).astype(float)


def compare(checkpoint: Path, images: np.ndarray, precisions: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each precision, the first of which is what the others are compared with."""
    model = Checkpoint(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        export = Export(model.load().eval().to_openvino(folder))
        calibration = export.calibration()
        paths = [str(Path(folder, f"{index}.png")) for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0)).save(path)
        graph = {each: np.stack([raw_scores(export, images, each, batch) for batch in BATCHES]) for each in precisions}
        score = {each: np.stack([score_scores(export, paths, each, batch) for batch in BATCHES]) for each in precisions}
        measured = {each: rounding(export, each, paths[:MEASURED]) for each in precisions}
    threshold = calibration.label_threshold
    rows = []
    for precision in precisions:
        undecided = Undecided.around(calibration, coarse=precision != "f32", rounding=measured[precision])
        exact, scaled = calibration.image.scaled(graph[precisions[0]][0]), calibration.image.scaled(graph[precision])
        every = np.concatenate([score[precisions[0]][:1], score[precision]])
        changed = ((every > threshold) != (every[0] > threshold)).any(0)
        counted = ((every >= undecided.low) & (every <= undecided.high)).all(0)
        rows.append(
            {
                "model": model.model_name,
                "precision": precision,
                "batches": float(np.abs(scaled - scaled[0]).max()),
                f"from {precisions[0]}": float(np.abs(scaled - exact).max()),
                "raw": float(np.abs(graph[precision] - graph[precisions[0]][0]).max() / abs(threshold)),
                "`score`": float(np.abs(every - every[0]).max() / abs(threshold)),
                "measured": measured[precision] / abs(threshold),
                "labels that change": int(changed.sum()),
                "not counted": int((changed & ~counted).sum()),
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m measurements.batches", description=__doc__)
    parser.add_argument("folder", type=Path, help="of photographs")
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--alike", type=Path, help="write images alike into this folder, and end")
    arguments = parser.parse_args()
    paths = images_in(arguments.folder)
    if arguments.alike is not None:
        write_alike(Path(paths[0]), arguments.alike, arguments.images)
        return
    paths = paths[:: max(1, len(paths) // arguments.images)][: arguments.images]
    precisions = ("f32", "bf16") if has_bf16() else ("f32",)
    print(f"Machine: {describe(1)}. {len(paths)} photographs.")
    images = photographs(paths)
    print(table([row for path in arguments.checkpoints for row in compare(path, images, precisions)]))


if __name__ == "__main__":
    main()
