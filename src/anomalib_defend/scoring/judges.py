"""From images to rows: by one model, or by its first view where that decides already."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anomalib_defend.decision.table import rows_of

from .journal import Entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import ImageBatch
    from torch import Tensor

    from anomalib_defend.decision.calibration import Calibration

MARGIN = 0.07
"""Of scaled scores: what two models may differ by in rounding, with fewer bits than float32 has, at least.

8 bits move a score by up to 0.03, bfloat16 by 0.021, where normal images are not alike; `Model.rounding` measures it.
"""
FLOAT32_MARGIN = 1e-3
"""The same in float32, where 1e-5 is the most that was seen."""


def margin(calibration: Calibration, rounding: float, *, coarse: bool) -> float:
    """What two scaled scores may differ by, where rounding was measured to change raw scores by that much."""
    largest = rounding / (2 * calibration.image.scale)  # at the threshold, where scaled scores move most
    return max(MARGIN if coarse else FLOAT32_MARGIN, largest)


class Scorer(Protocol):
    """What scores batches: an export, or a checkpoint."""

    calibration: Calibration | None
    """What the scores mean, where it is known."""
    batch_size: int
    parallel: int
    """How many batches are scored at a time, each from a thread of its own."""

    def prepare(self, path: str, /) -> Tensor:
        """What is scored of an image; called in any thread.

        Raises:
            UnusableImageError: If the file cannot be read.
        """

    def score(self, paths: Sequence[str], images: Sequence[Tensor]) -> ImageBatch:
        """Score what ``prepare`` has returned, and say what it means."""


class Judge:
    """Rows of images by one model.

    Args:
        scorer: The model.
        pictures: Folder of their pictures, if any are wanted.
        root: Folder of the table.
    """

    def __init__(self, scorer: Scorer, pictures: Path | None = None, root: Path = Path()) -> None:
        self.prepare, self.batch_size, self.parallel = scorer.prepare, scorer.batch_size, scorer.parallel
        self._scorer = scorer
        self._threshold = None if scorer.calibration is None else scorer.calibration.label_threshold
        self._write: Any = None
        if pictures is not None:
            from .pictures import write_pictures  # noqa: PLC0415 - needs OpenCV

            threshold = None if scorer.calibration is None else 1 - scorer.calibration.sensitivity
            model = getattr(scorer, "model", None)
            self._write = partial(write_pictures, model=model, threshold=threshold, folder=pictures, root=root)

    def entries(self, paths: Sequence[str], images: Sequence[Tensor]) -> list[Entry]:
        """The rows of images that could be read; called in any thread."""
        batch = self._scorer.score(paths, images)
        if self._write is not None:
            batch.picture = self._write(batch)
        return [Entry(row) for row in rows_of(batch, self._threshold)]


class FirstViewJudge:
    """Rows of images by a model whose score is the smallest of several views': most normal images show in the first.

    What the first view's score makes normal stays normal: its score is an upper bound, and all labels are those of all
    views. A score nearer to the threshold than rounding can move it is computed in full.

    Args:
        first: The model of the first view alone.
        full: The model of all views.
        margin: What two scaled scores may differ by in rounding.

    Raises:
        ValueError: If they have other thresholds, or take other images.
    """

    def __init__(self, first: Scorer, full: Scorer, margin: float = MARGIN) -> None:
        calibration = full.calibration
        if calibration is None or first.calibration != calibration:
            msg = (
                "--first-view is of another model: its threshold or its normal scores are others than MODEL's. If one "
                "of them was calibrated anew, calibrate the checkpoint instead (`anomalib-defend threshold model.ckpt "
                "--calibrate FOLDER`), and export both from what that writes."
            )
            raise ValueError(msg)
        if getattr(first, "size", None) != getattr(full, "size", None):
            msg = "--first-view is of another model: it takes images of another size than MODEL."
            raise ValueError(msg)
        self.prepare, self.batch_size, self.parallel = full.prepare, first.batch_size, full.parallel
        self._first, self._full = Judge(first), Judge(full)
        self._scaled = calibration.image.scaled
        self._limit = min(float(self._scaled(calibration.label_threshold)), 0.5) - margin
        self._margin = margin

    def entries(self, paths: Sequence[str], images: Sequence[Tensor]) -> list[Entry]:
        """The rows of images that could be read; called in any thread.

        Raises:
            ValueError: If another view has raised a score: the models do not belong together.
        """
        bounds = [entry.row for entry in self._first.entries(paths, images)]
        entries = [Entry(row, upper_bound=True) for row in bounds]
        # a score that is no number is compared with none
        left = [index for index, row in enumerate(bounds) if not self._scaled(_raw(row)) <= self._limit]
        if left:
            for index, entry in zip(
                left, self._full.entries([paths[i] for i in left], [images[i] for i in left]), strict=True
            ):
                if self._scaled(_raw(entry.row)) > self._scaled(_raw(bounds[index])) + self._margin:
                    msg = (
                        f"--first-view is not the first view of MODEL: {paths[index]!r} has the score "
                        f"{_raw(bounds[index]):g} there, and {_raw(entry.row):g} with all views, which is never higher."
                    )
                    raise ValueError(msg)
                entries[index] = entry
        return entries


def _raw(row: Any) -> float:
    return float("nan") if row.raw_score is None else row.raw_score
