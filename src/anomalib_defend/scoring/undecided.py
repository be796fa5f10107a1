"""Which labels rounding may change: those of images whose score lies next to the threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomalib_defend.decision.calibration import Calibration

FLOAT32 = 1e-5
"""What the order of sums may change of a score of size one, or as a share of a larger one, raw or scaled."""
COARSE = 0.021
"""With fewer bits, as a share, at least: in bf16 on an Intel Xeon with AMX (docs/measurements.md, "Batches")."""


class Undecided(NamedTuple):
    """The raw scores so near to the threshold that another batch or processor may change the label."""

    low: float
    high: float
    coarse: bool
    """Whether they come from an arithmetic of fewer bits than float32."""

    @classmethod
    def around(cls, calibration: Calibration, *, coarse: bool, rounding: float = 0.0) -> Undecided:
        """Around a calibration's threshold, by what rounding may change of the raw or of the scaled score.

        Args:
            calibration: Of the model.
            coarse: Whether the scores are computed with fewer bits than float32 has.
            rounding: What that was measured to change of raw scores. No share of the threshold bounds it: features are
                rounded, and where normal images are alike, scores are small differences of them.
        """
        threshold = calibration.label_threshold
        share = COARSE if coarse else FLOAT32
        centre = 1 - calibration.sensitivity
        low, high = calibration.image.raw(np.clip([centre - share, centre + share], 0, 1))
        distance = max(COARSE * abs(threshold), rounding) if coarse else FLOAT32 * max(1, abs(threshold))
        return cls(min(low, threshold - distance), max(high, threshold + distance), coarse)

    def count(self, raw_scores: NDArray[np.float64]) -> int:
        """How many of the images with these scores [n] are meant."""
        return int(((raw_scores >= self.low) & (raw_scores <= self.high)).sum())

    def told(self, images: int) -> str:
        """The one line that says how many are meant."""
        way_out = " In float32 there are fewer: --hint f32, and no export of 8 bits." if self.coarse else ""
        return (
            f"Labels of {images} images may change with the batch or the processor, by rounding: their raw_score lies "
            f"between {self.low:.9g} and {self.high:.9g}, next to the threshold.{way_out}"
        )
