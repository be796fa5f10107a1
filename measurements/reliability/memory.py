"""Resident memory of training and prediction, from image 500 to image 5,000.

``python -m measurements.reliability.memory``

Model and images are small, so that a leak of a few kilobytes an image shows. Each measurement has its own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data import Folder
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_defend.models import Defend

DIFFERENT = 100  # images of different content and size; more are links to these
EPOCH = 500  # training images of an epoch
BATCH = 20
MEASUREMENTS = ("training", "prediction", "prediction with heat maps", "prediction, all results kept", "OpenVINO")

Readings = dict[str, dict[int, float]]
"""What was measured -> number of images -> MiB."""


def resident_mib() -> float:
    """Memory that this process holds, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Recorder(Callback):
    """Reads the memory whenever another ``every`` images have been seen, for each stage of training by itself."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: dict[str, int] = defaultdict(int)
        self.readings: Readings = defaultdict(dict)

    def add(self, name: str, images: int = 1) -> None:
        """Count images and read the memory where it is time."""
        before, self.seen[name] = self.seen[name], self.seen[name] + images
        if before // self.every < self.seen[name] // self.every:
            self.readings[name][self.seen[name]] = resident_mib()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of a training step."""
        del outputs, batch_idx
        stage = 1 if trainer.current_epoch < pl_module.hparams["dense_epochs"] else 2
        self.add(f"training, stage {stage}", len(batch.image))

    def on_predict_batch_end(self, *args: Any) -> None:
        """Count a predicted image: a batch holds one."""
        del args
        self.add("prediction")


def write_images(folder: Path, count: int) -> list[Path]:
    """Write JPEG images of various sizes, the same ones in every call."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{index:05d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if index >= DIFFERENT:
            os.link(paths[index % DIFFERENT], path)
            continue
        height, width = rng.integers(60, 400, 2)
        coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return paths


def make_engine(folder: Path, *callbacks: Callback) -> Engine:
    """An engine that writes into a folder and not on the screen."""
    return Engine(
        default_root_dir=folder, accelerator="cpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def train(folder: Path, images: int, *callbacks: Callback, heat_maps: bool = False) -> Defend:
    """Train a small model on ``images`` images in each stage."""
    epochs, per_epoch = max(1, images // EPOCH), min(images, EPOCH)
    for name, count in (("normal", per_epoch), ("validation", BATCH)):
        write_images(folder / "train" / name, count)
    data = Folder(
        "generated", root=folder / "train", normal_dir="normal", normal_test_dir="validation",
        val_split_mode="same_as_test", train_batch_size=BATCH, num_workers=0,
    )  # fmt: skip
    model = Defend(
        "vit_digits_patch8_96", dense_epochs=epochs, distill_epochs=epochs, student_lr=1e-3, seed=0,
        visualizer=heat_maps,
    )  # fmt: skip
    make_engine(folder / "train", *callbacks).fit(model, datamodule=data)
    return model


def measure(name: str, images: int, every: int) -> Readings:
    """Take one of the ``MEASUREMENTS``."""
    recorder = Recorder(every)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if name == "training":
            train(folder, images, recorder)
            return recorder.readings
        model = train(folder, BATCH, heat_maps="heat maps" in name)
        paths = write_images(folder / "test", images)
        if name == "OpenVINO":
            inferencer = OpenVINOInferencer(model.to_openvino(folder), device="CPU")
            for path in paths:
                inferencer.predict(path)
                recorder.add(name)
            return recorder.readings
        keep = "kept" in name
        make_engine(folder, recorder).predict(model, data_path=paths[0].parent, return_predictions=keep)
        return {name: recorder.readings["prediction"]}


def growth(readings: dict[int, float]) -> float:
    """Share by which the memory grew from the first to the last reading."""
    first, *_, last = readings.values()
    return last / first - 1


def main() -> None:
    """Print the readings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--measurements", nargs="+", default=MEASUREMENTS, choices=MEASUREMENTS)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name in arguments.measurements:
        with context.Pool(1) as pool:
            for measured, readings in pool.apply(measure, (name, arguments.images, arguments.every)).items():
                print(f"{measured}: {growth(readings):+.1%}")
                print("  " + ", ".join(f"{images}: {mib:.0f} MiB" for images, mib in readings.items()), flush=True)


if __name__ == "__main__":
    main()
