"""An export without a threshold would label images by a comparison with NaN, which engines answer differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .normal_quantile import NormalQuantilePostProcessor

if TYPE_CHECKING:
    from torch import nn


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
    if not getattr(post_processor, "enable_thresholding", False) or not post_processor.image_threshold.isnan():  # type: ignore[union-attr, operator]
        return
    msg = (
        f"Cannot {action}: no normal image was validated, so there is no threshold to label images by. Train with "
        "validation (no limit_val_batches=0), or set a threshold from a folder of normal images: `anomalib-defend "
        "threshold CHECKPOINT --calibrate FOLDER`. For scores without labels: `anomalib-defend threshold CHECKPOINT "
        "--labels false`, or model.post_processor.enable_thresholding = False."
    )
    raise RuntimeError(msg)
