"""Time of our pictures and of anomalib's: ``python -m measurements.pictures [--images 1000] [--size 500 375]``."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.visualization import ImageVisualizer
from PIL import Image

from anomalib_defend.post_processing import NormalQuantilePostProcessor
from anomalib_defend.visualization import NoveltyVisualizer

BATCH, MAP_SIZE, DIGITS = 25, 224, 5  # a map looks like a photograph's: some smooth spots


def write_images(folder: Path, number: int, size: tuple[int, int], ending: str) -> list[str]:
    """Write images with smooth structure and some noise, as a camera gives."""
    rng, paths = np.random.default_rng(0), []
    for index in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse) + rng.normal(0, 3, (size[1], size[0], 3))
        paths.append(str(folder / f"{index:04d}.{ending}"))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def make_batches(paths: Sequence[str]) -> list[ImageBatch]:
    """Batches as a model and its post-processor leave them."""
    generator, batches = torch.Generator().manual_seed(0), []
    for start in range(0, len(paths), BATCH):
        part = list(paths[start : start + BATCH])
        coarse = torch.rand(len(part), 1, DIGITS, DIGITS, generator=generator)
        maps = torch.nn.functional.interpolate(coarse, size=MAP_SIZE, mode="bicubic").clamp(0, 1)[:, 0]
        scores = maps.flatten(1).mean(dim=1)
        batches.append(
            ImageBatch(
                image=torch.zeros(len(part), 3, MAP_SIZE, MAP_SIZE), image_path=part, anomaly_map=maps,
                pred_mask=maps > 0.5, pred_score=scores, pred_label=scores > 0.5,
            )
        )  # fmt: skip
    return batches


def cpu_seconds(visualizer: ImageVisualizer, batches: Sequence[ImageBatch], folder: Path) -> float:
    """Draw and save all pictures, and check their number."""
    post_processor = NormalQuantilePostProcessor()
    post_processor._image_threshold.fill_(0.5)
    trainer: Any = SimpleNamespace(default_root_dir=folder, global_rank=0, datamodule=None)
    model: Any = SimpleNamespace(post_processor=post_processor, map_note="")
    start = time.process_time()
    for index, batch in enumerate(batches):
        visualizer.on_test_batch_end(trainer, model, batch, batch, index)
    seconds = time.process_time() - start
    found, expected = len(list(folder.rglob("*.png")) + list(folder.rglob("*.jpg"))), sum(map(len, batches))
    if found != expected:
        msg = f"{found} pictures of {expected} images."
        raise RuntimeError(msg)
    return seconds


def anomalibs() -> ImageVisualizer:
    """anomalib's, with image and heat map alone, the least that shows what ours shows."""
    return ImageVisualizer(fields=["image"], overlay_fields=[("image", ["anomaly_map"])])


def main(argv: Sequence[str] | None = None) -> None:
    """Print milliseconds of processor time a picture, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--ending", default="png", choices=("png", "jpg"), help="anomalib keeps the image's format")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], ImageVisualizer]] = {
        "anomalib, default": ImageVisualizer,
        "anomalib, image and map": anomalibs,
        "ours": NoveltyVisualizer,
    }
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "in").mkdir()
        paths = write_images(Path(scratch) / "in", args.images, tuple(args.size), args.ending)
        batches = make_batches(paths)
        for name, make in makers.items():  # fonts and colours are made once
            cpu_seconds(make(), batches[:1], Path(scratch) / "warm" / name)
        seconds = {name: cpu_seconds(make(), batches, Path(scratch) / name) for name, make in makers.items()}
    print(f"{args.images} images of {args.size[0]} x {args.size[1]} pixels (.{args.ending}), one thread")
    for name, value in seconds.items():
        ratio = f"ours costs {seconds['ours'] / value:.2f} of it"
        print(f"{name:24} {1000 * value / args.images:6.1f} ms a picture" + ("" if name == "ours" else f"; {ratio}"))


if __name__ == "__main__":
    main()
