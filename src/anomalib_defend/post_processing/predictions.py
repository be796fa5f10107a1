"""The table of what was predicted: anomalib's command line shows pictures alone."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from anomalib.data import Batch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

logger = logging.getLogger(__name__)


class PredictionTable(Callback):
    """Write path, score and label of each predicted image to ``predictions.csv`` in the run's folder.

    Earlier tables stay: the next ones are ``predictions-1.csv`` ... Each process writes one of its own.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._images = self._novel = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new table."""
        del pl_module
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        number, path = 0, folder / "predictions.csv"
        while True:
            try:
                with path.open("x", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerow(["image_path", "pred_score", "pred_label"])
                break
            except FileExistsError:
                number += 1
                path = folder / f"predictions-{number}.csv"
        self._path, self._images, self._novel = path, 0, 0

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: object, **kwargs: object
    ) -> None:
        """Add a batch, after post-processing."""
        del trainer, pl_module, args, kwargs
        if self._path is None or outputs.pred_score is None:
            return
        scores = outputs.pred_score.flatten().tolist()
        labels = [None] * len(scores) if outputs.pred_label is None else outputs.pred_label.flatten().tolist()
        paths = outputs.image_path or [""] * len(scores)
        names = {None: "", False: "normal", True: "novel"}
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [path, f"{score:.6f}", names[label]] for path, score, label in zip(paths, scores, labels, strict=True)
            )
        self._images += len(scores)
        self._novel += sum(map(bool, labels))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the table is."""
        del trainer, pl_module
        logger.info("%d of %d images are novel; all scores are in %s.", self._novel, self._images, self._path)
