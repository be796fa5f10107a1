"""The table of results: anomalib's command line shows pictures alone."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from anomalib_defend.decision.conformal import check_share
from anomalib_defend.decision.table import Row, append, append_chosen, rows_of, write_header

from .calibrated import NO_CALIBRATION
from .description import Description
from .processes import DataOrder, EachBatch, categories_of, gather, is_several
from .thresholds import lacks_threshold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib.data import Batch
    from lightning import LightningModule, Trainer

    from anomalib_defend.decision.calibration import Calibration

logger = logging.getLogger(__name__)


class PredictionTable(EachBatch, Callback):
    """Write every tested or predicted image to ``test.csv`` or ``predictions.csv`` in the run's folder.

    What was run is beside it in ``test.json`` or ``predictions.json``, for `anomalib-defend report`.

    One table in the data set's order, whatever the number of processes, with the columns of `decision.table.Row`. A
    single process adds each batch as it comes. Earlier tables stay: the next ones are ``predictions-1.csv`` ...

    Args:
        novel_first: Sort the table, the most novel images first.
        target_fdr: Mark the images, in a last column ``selected``, of which a share of at most ``target_fdr`` is
            expected to be normal.

    Raises:
        ValueError: If ``target_fdr`` is not in (0, 1).
    """

    def __init__(self, novel_first: bool = False, target_fdr: float | None = None) -> None:
        if target_fdr is not None:
            check_share(target_fdr=target_fdr)
        self.novel_first, self.target_fdr = novel_first, target_fdr
        self._path: Path | None = None  # None in all processes but the first
        self._order = DataOrder()
        self._calibration: Calibration | None = None
        self._labels = True  # whether labels mean anything
        self._description: Description | None = None
        self._rows: list[tuple[int, Row]] = []
        self._categories: dict[int, str] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new table.

        Raises:
            ValueError: If ``target_fdr`` was given, but the model holds no normal validation scores.
        """
        self._start(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new table; the files that the data leave out stand at its end, each with its error.

        Raises:
            ValueError: If ``target_fdr`` was given, but the model holds no normal validation scores.
        """
        self._start(trainer, pl_module, "predictions")
        if self._path is not None:
            unusable: Mapping[str, str] = getattr(getattr(trainer, "datamodule", None), "unusable", {})
            self._rows = [(sys.maxsize, Row(path, error=error)) for path, error in unusable.items()]

    def _start(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        post_processor = getattr(pl_module, "post_processor", None)
        self._calibration = getattr(post_processor, "calibration", None)
        if self.target_fdr is not None and self._calibration is None:
            msg = f"target_fdr={self.target_fdr:g} selects by p-values. {NO_CALIBRATION}"
            raise ValueError(msg)
        self._labels = not lacks_threshold(post_processor)  # anomalib's own post-processor labels all the same
        self._rows, self._path, self._categories = [], None, None
        self._order.start()
        self._description = Description(trainer, pl_module)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self._path = _new_table(folder, name, selected=self.target_fdr is not None)

    def on_batch(self, trainer: Trainer, batch: Batch, loaders: object, dataloader_idx: int) -> None:
        """Add a batch, after post-processing."""
        # our post-processor has looked already, another's has not
        positions = getattr(batch, "position", None)
        if positions is None:
            positions = self._order.keep_once(batch, loaders, dataloader_idx)
        if batch.pred_score is None or not positions:
            return
        if self._categories is None:
            self._categories = categories_of(loaders)
        threshold = None if self._calibration is None else self._calibration.label_threshold
        rows = rows_of(batch, threshold, [self._categories.get(position, "") for position in positions])
        for row in rows:
            row.label = row.label if self._labels else None
        if self._path is not None and not self._waits(trainer):
            append(self._path, rows)
        self._rows.extend(zip(positions, rows, strict=True))

    def _waits(self, trainer: Trainer) -> bool:
        return is_several(trainer) or self.novel_first or self.target_fdr is not None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many false alarms there were."""
        del pl_module
        rows = self._finish(trainer)
        if rows is None:
            return
        known = [row for row in rows if row.true_label is not None and row.label is not None]
        for sentence in _outcome(known, self._calibration) if known else ():
            logger.info(sentence)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many images are novel."""
        del pl_module
        rows = self._finish(trainer)
        if rows is None:
            return
        labels, scored = [row.label for row in rows if row.label is not None], sum(not row.error for row in rows)
        if labels or not scored:
            logger.info("%d of %d images are novel.", sum(labels), scored)
        else:
            logger.info("%d images have a score, and no label.", scored)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where the table is, below what Lightning prints of a test's metrics."""
        del trainer, pl_module, stage
        if self._path is not None:
            logger.info("Table: %s", self._path)
        self._path = None

    def _finish(self, trainer: Trainer) -> list[Row] | None:
        """All rows in the data set's order, in the first process."""
        own, self._rows = self._rows, []
        found = sorted(gather(own) if is_several(trainer) else own, key=lambda item: item[0])
        if self._path is None:
            return None
        rows = [row for _, row in found]
        if self._waits(trainer):
            count = append_chosen(self._path, rows, novel_first=self.novel_first, target_fdr=self.target_fdr)
            if self.target_fdr is not None:
                logger.info("target_fdr=%g selects %d of %d images.", self.target_fdr, count, len(rows))
        else:
            append(self._path, [row for row in rows if row.error])
        if self._description is not None:
            self._description.save(self._path, self._calibration)
        return rows


def _new_table(folder: Path, name: str, *, selected: bool) -> Path:
    path, number = folder / f"{name}.csv", 0
    while not write_header(path, selected=selected):
        number += 1
        path = folder / f"{name}-{number}.csv"
    return path


def _outcome(rows: list[Row], calibration: Calibration | None) -> list[str]:
    """False alarms and finds at the threshold, and what was to be expected."""
    normal, novel = ([row for row in rows if row.true_label is truth] for truth in (False, True))
    sentences = []
    if normal:
        sentences.append(
            f"False alarms: {sum(map(_is_flagged, normal))} of {len(normal)} normal images"
            f"{_expectation(len(normal), calibration)}."
        )
    if novel:
        chance = _expectation(len(novel), calibration, "if they were no different, ")
        sentences.append(f"Found: {sum(map(_is_flagged, novel))} of {len(novel)} novel images{chance}.")
    return sentences


def _is_flagged(row: Row) -> bool:
    return row.label is True


def _expectation(images: int, calibration: Calibration | None, condition: str = "") -> str:
    if calibration is None:
        return " (nothing can be said of what was to be expected: the model holds no normal validation scores)"
    expected = calibration.expected_count(images)
    return (
        f" (expected: {condition}{expected.mean:.1f}, 95 % interval {expected.low:.0f} to {expected.high:.0f}; "
        f"target_fpr={calibration.target_fpr:g}, {calibration.count} validation images)"
    )
