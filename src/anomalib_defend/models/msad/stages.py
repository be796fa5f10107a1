"""The one stage of a training: the encoder learns views of an image to be nearer than other images'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib.data.transforms.utils import extract_transforms_by_type
from torchvision.transforms import v2

from anomalib_defend.models.components.stage import Step
from anomalib_defend.models.components.tune_encoder import TuneEncoder
from anomalib_defend.nn.contrastive import two_views

from .torch_model import MSADModel

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run


class ContrastiveStage(TuneEncoder):
    """Tune the encoder by two views of each image."""

    loss_name = "contrastive_loss"
    model: MSADModel

    def step(self, batch: Batch, run: Run) -> Step:
        """Loss of two views, which undo the pre-processor's normalisation meanwhile."""
        normalize = extract_transforms_by_type(run.transform, v2.Normalize)
        mean, std = (normalize[-1].mean, normalize[-1].std) if normalize else ((0.0,) * 3, (1.0,) * 3)
        return Step(self.model.loss(*two_views(batch.image, mean, std)))
