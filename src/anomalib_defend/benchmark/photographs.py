"""Defend on real photographs, beside a nearest-neighbour search with the same encoder.

``python -m anomalib_defend.benchmark.photographs --root VOC2012 --backbone deit_tiny_patch16_224 --weights FILE``

Every cell runs in a process of its own, so that its peak memory is its own, and appends one line to ``--out``; cells
that stand there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from anomalib.engine import Engine
from lightning.pytorch import seed_everything
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from anomalib_defend.data import SemanticVOC
from anomalib_defend.models import Defend
from anomalib_defend.nn import vit as vits
from anomalib_defend.nn.pretrained import load_weights
from anomalib_defend.pre_processing import ResizeNormalize


def datamodule(cell: dict[str, Any]) -> SemanticVOC:
    """The cell's images: Pascal VOC, one category normal."""
    return SemanticVOC(
        cell["root"], category=cell["category"], setting=cell["setting"], seed=cell["seed"], num_workers=0
    )


def run_defend(cell: dict[str, Any]) -> float:
    """Train and test Defend; returns the image AUROC of `anomalib train`."""
    model = Defend(
        backbone=cell["backbone"],
        weights=cell["weights"],
        dense_epochs=cell["dense_epochs"],
        distill_epochs=cell["distill_epochs"],
        student_lr=cell["student_lr"],
        seed=cell["seed"],
        visualizer=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, enable_progress_bar=False)
        return engine.train(model, datamodule=datamodule(cell))[0]["image_AUROC"]


@torch.inference_mode()
def run_nearest_neighbours(cell: dict[str, Any]) -> float:
    """Mean cosine distance of the [CLS] token to the two nearest of the training and validation images."""
    data = datamodule(cell)
    data.setup()
    config = vits.data_config(cell["backbone"])
    encoder = vits.create_vit(cell["backbone"], config["image_size"]).eval()
    load_weights(encoder, cell["weights"])
    prepare = ResizeNormalize(**config).transform

    def features(dataset: Any) -> torch.Tensor:
        return torch.cat([encoder(prepare(item.image)[None]) for item in dataset])

    index = NearestNeighbors(n_neighbors=2, metric="cosine")
    index.fit(torch.cat([features(data.train_data), features(data.val_data)]).numpy())
    distances, _ = index.kneighbors(features(data.test_data).numpy())
    return float(roc_auc_score(data.test_data.samples.label_index, distances.mean(axis=1)))


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Run one cell and measure it."""
    start = time.perf_counter()
    seed_everything(cell["seed"])
    auroc = run_nearest_neighbours(cell) if cell["method"] == "CLS 2-NN" else run_defend(cell)
    return {
        **cell,
        "auroc": auroc,
        "minutes": (time.perf_counter() - start) / 60,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def make_cells(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The table's cells, quick ones first."""
    common = {key: getattr(arguments, key) for key in ("root", "backbone", "weights", "setting", "distill_epochs")}
    cells = []
    for seed in arguments.seeds:
        base = {**common, "seed": seed}
        none = {"dense_epochs": None, "student_lr": None}
        cells += [{**base, "category": name, "method": "CLS 2-NN", **none} for name in arguments.categories]
        cells += [
            {**base, "category": name, "method": "Defend", "dense_epochs": dense, "student_lr": rate}
            for rate in arguments.student_lr
            for name in arguments.categories
            for dense in arguments.dense_epochs
        ]
    return cells


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    columns = [
        "category",
        "method",
        "dense_epochs",
        "distill_epochs",
        "student_lr",
        "seed",
        "auroc",
        "minutes",
        "peak_gb",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for result in results:
        row = {**result, "auroc": f"{result['auroc']:.3f}", "minutes": f"{result['minutes']:.1f}"}
        row["peak_gb"] = f"{result['peak_gb']:.1f}"
        if result["dense_epochs"] is None:
            row["distill_epochs"] = None
        lines.append("| " + " | ".join("-" if row[column] is None else str(row[column]) for column in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="Pascal VOC 2012 (VOC2012, VOCdevkit or its parent)")
    parser.add_argument("--backbone", default="deit_tiny_patch16_224", help="timm ViT")
    parser.add_argument("--weights", required=True, help="its weights, .safetensors or .pth")
    parser.add_argument("--categories", nargs="+", default=["horse", "cat", "dog"])
    parser.add_argument("--setting", default="uni_class", choices=["uni_class", "leave_one_out"])
    parser.add_argument("--dense-epochs", nargs="+", type=int, default=[0, 3])
    parser.add_argument("--distill-epochs", type=int, default=10)
    parser.add_argument("--student-lr", nargs="+", type=float, default=[1e-5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/photographs.jsonl"), help="results, one line a cell")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    context = multiprocessing.get_context("spawn")
    for cell in make_cells(arguments):
        if any(cell.items() <= result.items() for result in done):
            continue
        with context.Pool(1) as pool:
            done.append(pool.apply(run_cell, (cell,)))
        with arguments.out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(table(done[-1:]).splitlines()[-1], flush=True)
    print(table(done))


if __name__ == "__main__":
    main()
