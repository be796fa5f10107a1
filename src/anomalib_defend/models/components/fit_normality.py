"""The stage of a model that trains nothing: one pass over the normal images."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from .stage import Stage, Step

if TYPE_CHECKING:
    from anomalib.data import Batch

    from .run import Run

logger = logging.getLogger(__name__)


class FitNormality(Stage):
    """Fit ``model.normality`` to ``model.encode`` of the normal images."""

    name, length = "normal images", "epochs"
    trains: ClassVar[bool] = False

    def plan(self, run: Run) -> int:
        """One pass."""
        _ = run.images.loader  # is there
        return 1

    def step(self, batch: Batch, run: Run) -> Step | None:
        """Nothing: the images are seen in `complete`."""

    def complete(self, run: Run) -> None:
        """Look at the normal images."""
        fit_normality(self.model, run)


def fit_normality(model: Any, run: Run) -> None:
    """Fit ``model.normality`` to ``model.encode`` of the normal images, without augmentations."""
    features = run.images.features(lambda _, batch: model.encode(batch.image), "Normal images", model)
    model.normality.fit(features)
    logger.info("What is normal: %d images of %d features.", *features.shape)
