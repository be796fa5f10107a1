"""Numbers that are not finite stop a run, with a sentence on what and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib.data import Batch


class _Watched(NamedTuple):
    finite: Tensor
    term: str
    value: Tensor
    batch: Batch
    where: str
    advice: str


class LossGuard:
    """Stops a training whose loss or images are NaN or infinite: a crop may miss such a pixel, its targets do not.

    They are looked at one step later, or before anything is saved: no step waits for its device.
    """

    def __init__(self) -> None:
        self._last: _Watched | None = None

    def watch(self, term: str, value: Tensor, batch: Batch, where: str, advice: str) -> None:
        """Look at the last step's loss, and remember this step's.

        Args:
            term: Name of the loss, as it is logged.
            value: The loss, a scalar.
            batch: The images that it was computed on.
            where: Stage, epoch and step.
            advice: What to do when the images are not the cause.

        Raises:
            FloatingPointError: As ``check`` does.
        """
        self.check()
        value = value.detach()
        self._last = _Watched(value.isfinite() & batch.image.isfinite().all(), term, value, batch, where, advice)

    def check(self) -> None:
        """Look at the last step.

        Raises:
            FloatingPointError: If it is not finite; names the images that are the cause, or else the term; and where.
        """
        last, self._last = self._last, None
        if last is None or last.finite:
            return
        images = not_finite_images(last.batch)
        if images:
            what = f"NaN or infinite pixels in {', '.join(images)}, seen in {last.where} ({last.term})"
        else:
            what = f"{last.term} is {last.value.item()} in {last.where}: {last.advice}"
        msg = f"{what}. The training stops here; the checkpoint of the last finished epoch is left as it was."
        raise FloatingPointError(msg)


def not_finite_images(batch: Batch, limit: int = 3) -> list[str]:
    """Paths (or positions) of the first ``limit`` images with NaN or infinite pixels."""
    finite = batch.image.flatten(1).isfinite().all(dim=1).tolist()
    names = batch.image_path or [f"image {index} of the batch" for index in range(len(finite))]
    return [str(name) for name, good in zip(names, finite, strict=True) if not good][:limit]


def check_scores(scores: Tensor, batch: Batch) -> None:
    """Refuse scores that are not finite: compared with a threshold they would silently mean "normal".

    Raises:
        ValueError: If a score is not finite; names the images.
    """
    if not scores.isfinite().all():
        images = not_finite_images(batch)
        cause = f"NaN or infinite pixels in {', '.join(images)}" if images else "the model's weights are damaged"
        msg = f"An image's score is not finite: {cause}."
        raise ValueError(msg)


def check_weights(state: Mapping[str, Tensor]) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        FloatingPointError: If one is NaN or infinite; names the tensors.
    """
    damaged = not_finite(state)
    if damaged:
        msg = f"Weights became NaN or infinite ({', '.join(damaged[:3])}), nothing is saved: lower the learning rates."
        raise FloatingPointError(msg)


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the networks' weights (``model.*``) that hold NaN or infinity."""
    weights = {
        name: value
        for name, value in state.items()
        if name.startswith("model.") and isinstance(value, Tensor) and value.is_floating_point()
    }
    if not weights:
        return []
    finite = torch.stack([value.isfinite().all() for value in weights.values()]).tolist()  # one wait for the device
    return [name for name, good in zip(weights, finite, strict=True) if not good]
