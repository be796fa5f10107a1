"""Folders of results as `benchmark run` leaves them, without running anything."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from anomalib_defend.benchmark.plan import Cell, Comparison, save


def make_scores(seed, shift, images=200, noise=None):
    """Scores of images of which every fourth is novel: the larger the shift, the better the model."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 4 == 0
    score = rng.normal(size=images) if noise is None else noise
    paths = [f"/data/{number}.png" for number in range(images)]
    return pd.DataFrame({"image_path": paths, "label": labels.astype(int), "score": score + shift * labels})


def write_results(
    folder, scores, models=("DN2", "A"), categories=("dog", "cat"), seeds=(0, 1), papers=None, settings=None, **changes
):
    """``scores`` maps (model, category, seed) to a table, an error text, or nothing; ``settings`` are the models'."""
    settings = settings or {model: {"class_path": "M", "init_args": {}} for model in models}
    cells = [
        Cell(model, "VOC", category, seed, settings[model], {}, {}, "cpu")
        for model in models
        for category in categories
        for seed in seeds
        if (model, category, seed) in scores
    ]
    comparison = Comparison("small", "Small", "DN2", list(models), ["VOC"], papers or {}, [], cells)
    save(replace(comparison, **changes), folder)
    for cell in cells:
        found = scores[cell.model, cell.category, cell.seed]
        place = folder / cell.folder
        place.mkdir()
        if isinstance(found, str):
            (place / "error.txt").write_text(f"{cell.key}\n{found}\n")
        elif found is not None:
            row = {"image_AUROC": float(roc_auc_score(found.label, found.score)), "fit_duration": 10.0 + cell.seed}
            if cell.model == "A":  # rows need not have the same keys
                row["pixel_AUROC"] = 0.9
            measured = {"images_per_second": 20.0, "parameters": 5_000_000, "peak_memory_gb": 1.0, "machine": "M"}
            size = {"train_images": 1, "test_images": len(found), "pixels": 1}
            content = {"key": cell.key, "row": row, "measured": measured, "seconds": 1.0, "size": size}
            (place / "result.json").write_text(json.dumps(content))
            found.to_csv(place / "scores.csv", index=False)
    return folder
