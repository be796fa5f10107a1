"""What is known of all images together, in memory that does not grow with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomalib_defend.decision.conformal import cutoff

from .undecided import Undecided

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from anomalib_defend.decision.calibration import Calibration

    from .journal import Entry


class Tally:
    """Counts rows, and their p-values, of which there are n + 1 different ones.

    Args:
        calibration: Where labels and p-values come from; None if there are none.
        coarse: Whether the scores are computed with fewer bits than float32 has.
        rounding: What that was measured to change of raw scores.
    """

    def __init__(self, calibration: Calibration | None, *, coarse: bool = False, rounding: float = 0.0) -> None:
        self.images = self.errors = self.novel = self.stopped = self.undecided = 0
        self._undecided = None
        if calibration is not None:
            self._undecided = Undecided.around(calibration, coarse=coarse, rounding=rounding)
        self._levels = 0 if calibration is None else calibration.count + 1
        self._counts = np.zeros(self._levels + 1, dtype=np.int64)  # at k: how many p-values are k / (n + 1)

    def add(self, entry: Entry) -> None:
        """Count a row."""
        row = entry.row
        self.images += 1
        self.errors += bool(row.error)
        self.novel += row.label is True
        self.stopped += entry.upper_bound
        if row.label is not None and row.raw_score is not None:
            self._add_scores(np.array([row.raw_score]))
        if row.p_value is not None:
            self._counts[self._rank(row.p_value)] += 1

    def add_many(
        self,
        images: int,
        errors: int,
        novel: int,
        p_values: NDArray[np.float64],
        raw_scores: NDArray[np.float64],
    ) -> None:
        """Count rows of which no score is an upper bound: numbers, p-values, and raw scores of those with a label."""
        self.images += images
        self.errors += errors
        self.novel += novel
        self._add_scores(raw_scores)
        if len(p_values):
            self._counts += np.bincount(np.rint(p_values * self._levels).astype(int), minlength=len(self._counts))

    def content(self) -> dict[str, int]:
        """Plain data for a run's description."""
        scored = self.images - self.errors
        return {"scored": scored, "errors": self.errors, "novel": self.novel, "undecided": self.undecided}

    def told(self, seconds: float, other_formats: Mapping[str, int]) -> Iterator[str]:
        """What is said of all images, line by line."""
        yield f"{self.images} images in {seconds:.0f} s: {self.novel} novel, {self.errors} with an error."
        if self.errors:
            yield "The column error says why."
        if self._undecided is not None and self.undecided:
            yield self._undecided.told(self.undecided)
        if other_formats:
            formats = ", ".join(f"{number} {suffix}" for suffix, number in sorted(other_formats.items()))
            yield f"Not looked at, since anomalib does not read their format: {formats}."

    @property
    def p_values(self) -> int:
        """How many p-values there are."""
        return int(self._counts.sum())

    def at_most(self, value: float) -> int:
        """How many p-values are at most ``value``."""
        return int(self._counts[: int(value * self._levels + 1e-9) + 1].sum())

    def selects(self, target_fdr: float) -> int:
        """The largest rank k such that images with a p-value of at most k / (n + 1) are selected; 0 if none is.

        See `decision.conformal.select`; an image without p-value counts as normal.
        """
        if not self._levels:
            return 0
        counts = self._counts[1:].copy()
        counts[-1] += self.images - self.p_values
        return self._rank(max(0.0, cutoff(np.arange(1, self._levels + 1) / self._levels, counts, target_fdr)))

    def is_selected(self, p_value: float | None, rank: int) -> bool:
        """Whether a p-value is at most that of a rank, digits lost in a file apart."""
        return p_value is not None and self._rank(p_value) <= rank

    def _add_scores(self, raw_scores: NDArray[np.float64]) -> None:
        if self._undecided is not None:
            self.undecided += self._undecided.count(raw_scores)

    def _rank(self, p_value: float) -> int:
        return round(p_value * self._levels)
