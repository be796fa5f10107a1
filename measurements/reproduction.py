"""What the tables of the DEFEND paper would cost on a GPU server: a calculation, not a measurement.

``python -m measurements.reproduction`` prints the table of docs/reproduce.md. Cells and their lengths are those of the
files that ``anomalib-defend benchmark run`` takes. A step is counted in operations; how many images a category has, is
what the data sets' descriptions say, or an upper bound of it.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

from anomalib_defend.benchmark.expand import find, load
from anomalib_defend.benchmark.plan import Cell

from .speed.jobs import PEAK, UTILISATION
from .speed.report import table

NAMES = (
    "uni_class", "leave_one_out", "splits", "voc", "coco", "mvtec", "near_distribution", "ablation_backbone",
    "ablation_defend", "ablation_layers", "ablation_mask", "ablation_norm",
)  # fmt: skip
READ = 300  # images a second that one core decodes and resizes (docs/measurements.md)
CORES = 16
LINE = 80  # bytes of scores.csv for each test image
DISK = {"CIFAR10": 0.5, "CIFAR100": 0.5, "MNIST": 0.4, "FashionMNIST": 0.4, "VOC": 4.0, "COCO": 40.0, "MVTecAD": 10.0}
# GB with the archive beside what is unpacked or written, rounded up

# GFLOP of a pass, at 224 where the name says nothing else: a multiplication and an addition are two
PASSES = {
    "vit_base_patch16_384": 111.0, "vit_base": 35.1, "vit_small": 9.2, "vgg16 at 128": 10.1, "vgg16 at 32": 0.63,
    "vgg16": 30.9, "resnet152": 23.0, "wide_resnet50_2 at 256": 29.8,
}  # fmt: skip
GENERATOR = 12.4  # GFLOP of a pass of Fitymi's U-Net at 32 x 32


class Work(NamedTuple):
    """Passes of the encoder (or GFLOP, for a small network) of a model.

    Attributes:
        epochs: An image of an epoch, and the number of epochs, for each stage.
        once: A training image, whatever the epochs.
        test: A test image.
        steps: An image of a step, and the number of images, of what is trained for a number of steps.
    """

    epochs: tuple[tuple[float, int], ...]
    once: float
    test: float
    steps: tuple[float, int] = (0, 0)


def work(name: str, given: dict[str, Any], batch_size: int, max_epochs: int) -> Work:
    """Of a model with its arguments: "What it costs" of its README, and the defaults of its epochs."""

    def epochs(default: int) -> int:
        return int(given.get("epochs") or default)

    if name == "Defend":  # stage 1: 77, student: 52, teacher: 35 GFLOP of a ViT-B/16 (measurements.speed --parts jobs)
        student = 1.48 * (2 if given.get("masking") == "none" else 1)
        return Work(((2.2, given.get("dense_epochs", 3)), (student, given.get("distill_epochs", 10))), 1, 2)
    if name == "KDAD" and given["backbone"].startswith("vgg"):
        return Work(((0.14, epochs(200)),), 1, 1.05)
    if name == "Fitymi":  # generator; classifier: an image and a fake, half of the blocks train, and the memory
        generator = GENERATOR * (given.get("generator_size", 32) / 32) ** 2 / PASSES["vit_base"]
        return Work(((6.0, 30),), 100 * generator, 1, (3 * generator, given.get("stop_step", 20_000) * batch_size))
    pixels = (given.get("image_size", 256) / 32) ** 2 if name == "ARNet" else 1
    each = {
        "DN2": Work((), 1, 1),
        "ObjectPrototypes": Work((), 1, 2),  # whole+centre
        "KDAD": Work(((0.5, epochs(10)),), 1, 1.15),
        "MSAD": Work(((7.0, epochs(20)),), 1, 1),  # a pass over the training images before each validation included
        "PANDA": Work(((3.0, epochs(15)),), 1, 1),
        "Transformaly": Work(((6.0, epochs(30)),), 1, 2),
        "ReverseDistillation": Work(((4.5, max_epochs),), 0, 2.2),  # a frozen encoder, and a decoder as large
        "GeneralAD": Work(((1.4, max_epochs),), 0, 1.1),  # a frozen encoder, and a small discriminator
        "UniAD": Work(((14.0, epochs(1000)),), 0, 7),
        "FCDD": Work(((1.5, epochs(600)),), 0, 0.5),
        "DeepSVDD": Work(((0.18, epochs(500)),), 0, 0.06),
        "ARNet": Work(((15.5 * pixels, epochs(125)),), 0, 3.9 * pixels),  # a step, and errors before each validation
    }
    return each[name]


def images(cell: Cell) -> tuple[float, int]:
    """Training images of a cell (a mean over the categories, or the most that there can be), and test images."""
    data, settings = cell.data_settings["class_path"].rpartition(".")[2], cell.data_settings["init_args"]
    left_out = settings.get("setting") == "leave_one_out"
    normal = settings["category"]
    number = len(normal) if isinstance(normal, list | tuple) else 1
    if data == "SemanticVOC":  # 1.46 categories an image of 20 categories
        return (10_091 if left_out else 10_091 * 1.46 / 20), 1_449
    if data == "SemanticCOCO":  # 2014; 3.5 categories an image of 80
        return (82_783 if left_out else 82_783 * 3.5 / 80), 40_504
    if data == "MVTecAD":
        return 3_629 / 15, 115
    total, categories = {"SemanticCIFAR10": (50_000, 10), "SemanticCIFAR100": (50_000, 20)}.get(data, (60_000, 10))
    share = (categories - number if left_out else number) / categories
    return total * share, 11_000 if "novel_dataset" in settings else 10_000


class Cost(NamedTuple):
    """Seconds of a GPU and of one core that reads, and bytes of results."""

    gpu: float
    core: float
    bytes: float


def cost(cell: Cell) -> Cost:
    """Multiply."""
    name, given = cell.model_settings["class_path"].rpartition(".")[2], cell.model_settings["init_args"]
    own = {
        "Transformaly": "vit_base_patch16_384", "Fitymi": "vit_base", "ReverseDistillation": "wide_resnet50_2 at 256",
    }  # fmt: skip
    backbone = str(given.get("backbone", own.get(name, "")))
    if backbone.startswith("vgg16") and "image_size" in given:
        backbone = f"vgg16 at {given['image_size']}"
    of_a_pass = next((gflop for prefix, gflop in PASSES.items() if backbone.startswith(prefix)), 1.0)
    if name in {"UniAD", "FCDD", "DeepSVDD", "ARNet"}:
        of_a_pass = 1.0
    train, test = images(cell)
    batch_size = cell.data_settings["init_args"].get("train_batch_size", 32)
    todo = work(name, given, batch_size, cell.trainer.get("max_epochs", 0))
    passes = train * (sum(step * number for step, number in todo.epochs) + todo.once) + test * todo.test
    passes += math.prod(todo.steps)
    read = train * (sum(number for _, number in todo.epochs) + bool(todo.once)) + test + todo.steps[1]
    return Cost(passes * of_a_pass * 1e9 / PEAK / UTILISATION, read / READ, test * LINE)


def hours(costs: list[Cost]) -> float:
    """Of one cell after the other, each as fast as the slower of GPU and reading allows."""
    return sum(max(each.gpu, each.core / CORES) for each in costs) / 3600


def row(name: str) -> dict[str, object]:
    """What a file costs."""
    cells = load(find(name)).cells
    costs = [cost(cell) for cell in cells]
    main = [each for cell, each in zip(cells, costs, strict=True) if cell.model == "DN2" or "Defend" in cell.model]
    data = {cell.data_settings["class_path"].rpartition(".")[2].removeprefix("Semantic") for cell in cells}
    ablation = name.startswith("ablation")
    return {
        "file": f"`{name}`",
        "cells": f"{len(cells):,}",
        "hours": hours(costs),
        "of them `DN2` and `Defend`": None if ablation else hours(main),
        "GPU alone, hours": sum(c.gpu for c in costs) / 3600,
        f"reading alone, {CORES} cores, hours": sum(c.core for c in costs) / CORES / 3600,
        "data, GB": sum(DISK[name] for name in data),
        "results, GB": sum(c.bytes for c in costs) / 1e9,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=list(NAMES), choices=NAMES)
    print(table([row(name) for name in parser.parse_args().files]))


if __name__ == "__main__":
    main()
