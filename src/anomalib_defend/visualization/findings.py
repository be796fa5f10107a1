"""What a batch, the model and its post-processor say of each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import Batch, ImageItem, NumpyImageItem
from numpy.typing import NDArray
from torch import Tensor

from anomalib_defend.decision.table import to_box

from .picture import Finding

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule
    from anomalib.post_processing import PostProcessor


def findings(
    batch: Batch | ImageItem | NumpyImageItem, model: AnomalibModule | None, *, single: bool = False
) -> Iterator[tuple[str, NDArray[Any] | Tensor, Finding]]:
    """File (or ""), pixels and findings of each image.

    Args:
        batch: Post-processed; a single item where ``single`` says so.
        model: Knows threshold and map; without it, the scores are taken for scaled ones.
        single: There is no dimension of images.
    """

    def values(name: str) -> Sequence[Any]:
        value = getattr(batch, name, None)
        return [value] * count if value is None else [value] if single else value

    def floats(name: str) -> list[float | None]:
        return [None if value is None else float(value) for value in values(name)]

    count = 1 if single else len(batch.image)
    threshold = 0.5 if model is None else threshold_of(model.post_processor)
    scaled, map_threshold = (_as_it_is, 0.5) if model is None else map_scale(model.post_processor)
    note = "" if model is None else getattr(model, "map_note", "")
    labels = [None if value is None or threshold is None else bool(value) for value in values("pred_label")]
    scores, p_values = floats("pred_score"), floats("p_value")
    for path, image, score, label, p_value, heat, above, box in zip(
        values("image_path"),
        values("image"),
        scores,
        labels,
        p_values,
        map(_array, values("anomaly_map")),
        map(_array, values("pred_mask")),
        map(to_box, values("box")),
        strict=True,
    ):
        finding = Finding(score, threshold, label, p_value, map_note=note, box=box)
        if heat is not None:
            finding.set_heat(scaled(heat), map_threshold)
            finding.above = None if above is None else above.astype(bool)
        yield str(path or ""), image, finding


def threshold_of(post_processor: PostProcessor | None) -> float | None:
    """The threshold in the unit of the scores that a post-processor gives.

    Returns:
        None where there is none; NaN where it is not known in this unit, since a sensitivity moves it in scaled units.
    """
    if post_processor is None or not post_processor.enable_thresholding or post_processor.image_threshold.isnan():
        return None
    if post_processor.enable_normalization:
        return float(post_processor.normalized_image_threshold)
    return float(post_processor.image_threshold) if post_processor.image_sensitivity == 0.5 else math.nan


def map_scale(post_processor: PostProcessor | None) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], float | None]:
    """How a post-processor's maps come onto the scale that all pictures share, and their threshold there.

    Returns:
        The scaling of a map, and None where it has no threshold, or none that is known on that scale.
    """
    if post_processor is None or not post_processor.enable_thresholding or post_processor.pixel_threshold.isnan():
        return _as_it_is, None
    threshold = float(post_processor.normalized_pixel_threshold)
    if post_processor.enable_normalization:
        return _as_it_is, threshold
    level = getattr(getattr(post_processor, "calibration", None), "pixel", None)
    return (_as_it_is, None) if level is None else (level.scaled, threshold)


def _as_it_is(heat: NDArray[Any]) -> NDArray[Any]:
    return heat


def _array(value: Tensor | NDArray[Any] | None) -> NDArray[Any] | None:
    """A map as ``(h, w)`` on the CPU."""
    if isinstance(value, Tensor):
        value = value.detach().to(torch.float32).cpu().numpy()
    return None if value is None else value.reshape(value.shape[-2:])
