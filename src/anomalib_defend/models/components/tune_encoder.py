"""The stage of a model that tunes its encoder and then keeps the normal images' features."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fit_normality import fit_normality
from .stage import Stage

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 5e-5
WATCHED = 100  # images


class TuneEncoder(Stage):
    """SGD on the trained part of ``model.encoder``, a `nn.tuned_encoder.TunedEncoder`; subclasses have the loss.

    The centre is the mean of the normal images' features before the first step; a resumed training has it from its
    checkpoint. The memory is filled with the features of the tuned encoder at each validation and at the end.
    """

    name, length = "encoder", "epochs"
    advice = "lower lr, or train with --trainer.precision 32"

    def __init__(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__(model, arguments)
        self._start = torch.empty(0)  # features of some images before the first step

    def plan(self, run: Run) -> int:
        """Its epochs."""
        _ = run.images.loader  # is there
        return super().plan(run)

    @property
    def momentum(self) -> float:
        """Of SGD, where it is an argument."""
        return float(self.arguments["momentum"])

    def optimizers(self) -> torch.optim.SGD:
        """SGD with a constant learning rate."""
        trained = [parameter for parameter in self.model.encoder.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, self.arguments["lr"], momentum=self.momentum, weight_decay=WEIGHT_DECAY)

    def enter(self, run: Run) -> None:
        """Find the centre, unless a checkpoint has brought it."""
        model = self.model
        if not model.center.fitted:
            features = run.images.features(lambda _, batch: model.encode(batch.image), "Centre", model)
            model.center.fit(features)
            self._start = _watched(features)

    def complete(self, run: Run) -> None:
        """Fill the memory with the features that the encoder gives now, and say how far it has moved."""
        fit_normality(self.model, run)
        now = _watched(self.model.normality.memory.cpu())
        if now.shape == self._start.shape:  # else a resumed run sees other images
            cosine = F.cosine_similarity(now, self._start.cpu()).mean().item()
            logger.info("Mean cosine of the features to those of the pretrained encoder: %.4f.", cosine)

    def state_dict(self) -> dict[str, Any]:
        """Features of some images before the first step."""
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare with the same ones."""
        self._start = state["start"]


def _watched(features: Tensor) -> Tensor:
    """Of features [M, D] at most 100, spread evenly."""
    return features[torch.linspace(0, len(features) - 1, min(len(features), WATCHED)).long()]
