"""Whether there is a threshold: without one, labels would come from a comparison with NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib.post_processing import PostProcessor
from torchmetrics import Metric

from .normal_quantile import NormalQuantilePostProcessor

if TYPE_CHECKING:
    from torch import nn


def lacks_threshold(post_processor: nn.Module | None) -> bool:
    """Whether it would label images, but no normal one was validated; None labels nothing."""
    labels = getattr(post_processor, "enable_thresholding", False)
    return bool(labels and post_processor.image_threshold.isnan())  # type: ignore[union-attr, operator]


def forget_threshold(post_processor: nn.Module | None) -> None:
    """Be as before the first validation, which was one of other weights; ours or anomalib's own."""
    if isinstance(post_processor, NormalQuantilePostProcessor):
        post_processor.forget()
    elif isinstance(post_processor, PostProcessor):
        for statistic in post_processor.buffers(recurse=False):
            statistic.fill_(float("nan"))
    for metric in [] if post_processor is None else post_processor.modules():
        if isinstance(metric, Metric):  # of a validation that was interrupted
            metric.reset()


def require_threshold(post_processor: nn.Module | None, action: str) -> None:
    """Refuse to do something with a model that labels images but was never validated.

    Args:
        post_processor: The model's, ours or anomalib's own; None labels nothing.
        action: What is refused: "export".

    Raises:
        RuntimeError: If there is no threshold; names the ways out.
        ValueError: If the threshold could not follow a ``target_fpr`` that was given beside a checkpoint.
    """
    if isinstance(post_processor, NormalQuantilePostProcessor):
        post_processor.require_moved()
    if not lacks_threshold(post_processor):
        return
    msg = (
        f"Cannot {action}: no normal image was validated with these weights, so there is no threshold to label images "
        "by. Train with validation (no limit_val_batches=0), or set a threshold from a folder of normal images: "
        "`anomalib-defend threshold CHECKPOINT --calibrate FOLDER`. For scores without labels: `anomalib-defend "
        "threshold CHECKPOINT --labels false`, or model.post_processor.enable_thresholding = False."
    )
    raise RuntimeError(msg)
