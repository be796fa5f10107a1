"""What bf16, and stage 2's cache in float16, change: AUROCs of paired trainings, each tested in float32 and bf16.

``python -m measurements.precision --root VOC2012 --category horse --weights FILE``

Pairs differ in one thing alone: the same seed draws the same student, order of the images, boxes and masks. Every
training runs in a process of its own and appends a line to ``--out``; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from anomalib.engine import Engine

from anomalib_defend.data import SemanticVOC
from anomalib_defend.models import Defend

from .speed.report import table
from .speed.timing import in_fresh_process

Cell = dict[str, Any]
"""A training: data, encoder, settings, ``dense_epochs``, ``seed`` and ``precision``; when it is done, ``auroc`` too."""

PRECISIONS = ("32", "bf16-mixed")
TRAININGS: dict[str, Cell] = {
    "32": {"precision": "32"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "32, no cache": {"precision": "32", "teacher_cache": "off"},
}
_OWN = ("precision", "teacher_cache")
PAIRS = {  # what is compared: (training, testing) against (training, testing)
    "training and testing in bf16": (("bf16-mixed", "bf16-mixed"), ("32", "32")),
    "training in bf16": (("bf16-mixed", "32"), ("32", "32")),
    "testing in bf16": (("32", "bf16-mixed"), ("32", "32")),
    "a cache in float16": (("32", "32"), ("32, no cache", "32")),
}


def run_cell(cell: Cell) -> Cell:
    """Train once; returns the cell with the image AUROC by the precision of the test."""
    data = SemanticVOC(
        cell["root"],
        category=cell["category"],
        max_train_images=cell["max_train_images"],
        seed=cell["seed"],
        num_workers=0,
    )
    names = ("backbone", "weights", "image_size", "dense_epochs", "distill_epochs", "student_lr", "seed")
    options = {name: cell[name] for name in names}
    model = Defend(**options, teacher_cache=cell.get("teacher_cache", "auto"), visualizer=False)
    aurocs = {}
    with tempfile.TemporaryDirectory() as folder:

        def engine(precision: str) -> Engine:
            return Engine(
                default_root_dir=folder, accelerator="cpu", devices=1, precision=precision, enable_progress_bar=False
            )

        engine(cell["precision"]).fit(model, datamodule=data)
        for precision in PRECISIONS:
            aurocs[precision] = engine(precision).test(model, datamodule=data)[0]["image_AUROC"]
    return {**cell, "auroc": aurocs}


def run_missing(cells: list[Cell], out: Path) -> list[Cell]:
    """Run the cells that ``out`` does not hold yet; each adds a line to it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for cell in cells:
        if cell in map(_settings, done):
            continue
        done.append(in_fresh_process(run_cell, cell))
        with out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    return [result for result in done if _settings(result) in cells]


def _settings(result: Cell) -> Cell:
    return {name: value for name, value in result.items() if name != "auroc"}


def _training(result: Cell) -> str:
    return next(name for name, own in TRAININGS.items() if own == {k: result[k] for k in _OWN if k in result})


def report(results: list[Cell]) -> str:
    """AUROCs of all runs, and for each pair the differences: mean, spread over the seeds, and the largest."""
    aurocs = {
        (result["dense_epochs"], result["seed"], _training(result), tested): auroc
        for result in results
        for tested, auroc in result["auroc"].items()
    }
    runs = sorted({run[:2] for run in aurocs})
    trainings = [name for name in TRAININGS if any(run[2] == name for run in aurocs)]
    rows: list[dict[str, object]] = [
        {
            "dense_epochs": dense,
            "seed": seed,
            **{
                f"trained {train}, tested {test}": f"{aurocs[dense, seed, train, test]:.4f}"
                for train in trainings
                for test in PRECISIONS
            },
        }
        for dense, seed in runs
    ]
    pairs: list[dict[str, object]] = []
    for dense in sorted({run[0] for run in runs}):
        seeds = [seed for epochs, seed in runs if epochs == dense]
        spread = statistics.stdev(aurocs[dense, seed, "32", "32"] for seed in seeds) if len(seeds) > 1 else None
        for name, (ours, baseline) in PAIRS.items():
            if not {ours[0], baseline[0]} <= set(trainings):
                continue
            differences = [aurocs[(dense, seed, *ours)] - aurocs[(dense, seed, *baseline)] for seed in seeds]
            pairs.append(
                {
                    "change of the AUROC by": name,
                    "dense_epochs": dense,
                    "mean": f"{statistics.mean(differences):+.4f}",
                    "standard deviation": f"{statistics.stdev(differences):.4f}" if len(seeds) > 1 else None,
                    "largest": f"{max(differences, key=abs):+.4f}",
                    "between seeds, float32": None if spread is None else f"{spread:.4f}",
                }
            )
    return f"{table(rows)}\n\n{table(pairs)}"


def main() -> None:
    """Run the cells that are missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="Pascal VOC 2012")
    parser.add_argument("--category", default="horse")
    parser.add_argument("--backbone", default="deit_tiny_patch16_224", help="timm ViT")
    parser.add_argument("--weights", help="its weights, .safetensors or .pth; default: timm's")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--max-train-images", type=int, default=300)
    parser.add_argument("--dense-epochs", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--distill-epochs", type=int, default=20)
    parser.add_argument("--student-lr", type=float, default=5e-4)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/precision.jsonl"), help="results, one line a training")
    arguments = vars(parser.parse_args())
    out, dense_epochs, seeds, trainings = (
        arguments.pop(name) for name in ("out", "dense_epochs", "seeds", "trainings")
    )
    cells = [
        {**arguments, "dense_epochs": dense, "seed": seed, **TRAININGS[training]}
        for dense in dense_epochs
        for seed in seeds
        for training in trainings
    ]
    print(report(run_missing(cells, out)))


if __name__ == "__main__":
    main()
