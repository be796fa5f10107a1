"""Train and test one method on one data set, each in a process of its own, and collect what was measured."""

from __future__ import annotations

import json
import multiprocessing
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
from anomalib_defend.nn.pretrained import load_pretrained, load_weights
from anomalib_defend.nn.vit import create_vit, data_config, patch_tokens
from anomalib_defend.pre_processing import ResizeNormalize

from .speed.timing import peak_gib

Cell = dict[str, Any]
"""What is run: data (root, category, setting), encoder (backbone, teacher, weights), method and its settings, seed."""


def datamodule(cell: Cell) -> SemanticVOC:
    """The cell's images: Pascal VOC, one category normal."""
    return SemanticVOC(
        cell["root"], category=cell["category"], setting=cell["setting"], seed=cell["seed"], num_workers=0
    )


def run_defend(cell: Cell) -> float:
    """Train and test Defend; returns the image AUROC of `anomalib train`."""
    model = Defend(
        backbone=cell["backbone"],
        pre_trained=cell["teacher"] == "pretrained",
        weights=cell["weights"] if cell["teacher"] == "pretrained" else None,
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
def run_nearest_neighbours(cell: Cell) -> float:
    """Mean cosine distance to the two nearest training and validation images: of [CLS], or of the mean patch token."""
    data = datamodule(cell)
    data.setup()
    config = data_config(cell["backbone"])
    encoder = create_vit(cell["backbone"], config["image_size"]).eval()
    if cell["weights"]:
        load_weights(encoder, cell["weights"])
    else:
        load_pretrained(encoder, cell["backbone"])
    prepare = ResizeNormalize(**config).transform

    def encode(images: torch.Tensor) -> torch.Tensor:
        return encoder(images) if cell["method"] == "CLS 2-NN" else patch_tokens(encoder, images)[-1].mean(dim=1)

    def features(dataset: Any) -> torch.Tensor:
        return torch.cat([encode(prepare(item.image)[None]) for item in dataset])

    index = NearestNeighbors(n_neighbors=2, metric="cosine")
    index.fit(torch.cat([features(data.train_data), features(data.val_data)]).numpy())
    distances, _ = index.kneighbors(features(data.test_data).numpy())
    return float(roc_auc_score(data.test_data.samples.label_index, distances.mean(axis=1)))


def run_cell(cell: Cell) -> Cell:
    """Run one cell and measure it."""
    start = time.perf_counter()
    seed_everything(cell["seed"])
    auroc = run_nearest_neighbours(cell) if cell["method"].endswith("2-NN") else run_defend(cell)
    return {
        **cell,
        "auroc": auroc,
        "minutes": (time.perf_counter() - start) / 60,
        "peak_gb": peak_gib(),
    }


def table(results: list[Cell]) -> str:
    """The results as a Markdown table."""
    settings = ["category", "method", "teacher", "dense_epochs", "distill_epochs", "student_lr", "seed"]
    columns = [*settings, "auroc", "minutes", "peak_gb"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for result in results:
        row = {**result, "auroc": f"{result['auroc']:.3f}", "minutes": f"{result['minutes']:.1f}"}
        row["peak_gb"] = f"{result['peak_gb']:.1f}"
        if result["dense_epochs"] is None:
            row["distill_epochs"] = None
        lines.append("| " + " | ".join("-" if row[column] is None else str(row[column]) for column in columns) + " |")
    return "\n".join(lines)


def run_missing(cells: list[Cell], out: Path) -> list[Cell]:
    """Run the cells that ``out`` does not hold yet; each adds a line to it and to the screen."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    context = multiprocessing.get_context("spawn")
    for cell in cells:
        if any(cell.items() <= result.items() for result in done):
            continue
        with context.Pool(1) as pool:
            done.append(pool.apply(run_cell, (cell,)))
        with out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(table(done[-1:]).splitlines()[-1], flush=True)
    return [result for result in done if any(cell.items() <= result.items() for cell in cells)]
