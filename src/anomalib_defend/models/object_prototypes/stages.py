"""The one stage: a pass over the normal images, and as many prototypes as the data have normal categories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_defend.models.components.fit_normality import FitNormality
from anomalib_defend.nn.normality import Clusters

if TYPE_CHECKING:
    from anomalib_defend.models.components.run import Run

    from .torch_model import ObjectPrototypesModel


class FitObjects(FitNormality):
    """Fit prototypes, a number of them for each normal category, or a memory to the whole normal images."""

    model: ObjectPrototypesModel

    def complete(self, run: Run) -> None:
        """Look at the normal images."""
        if isinstance(self.model.normality, Clusters):
            categories = run.num_normal_categories or 1
            self.model.normality.num_clusters = self.arguments["num_prototypes"] * categories
        super().complete(run)
