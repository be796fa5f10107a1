"""What a checkpoint or an export says of one image, before any threshold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomalib_defend.decision.conformal import p_values
from anomalib_defend.decision.models import Checkpoint, open_model
from anomalib_defend.scoring.images import UnusableImageError, read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomalib_defend.decision.models import Export


@dataclass(frozen=True)
class Judged:
    """An image and what the model says of it; ``error`` where it could not be scored.

    Attributes:
        path: The image.
        raw: The score before scaling.
        p_value: Share of normal images at least as novel.
        heat: ``(h, w)`` map before scaling, of models that have one.
        error: Why there is no score.
    """

    path: Path
    raw: float = float("nan")
    p_value: float = float("nan")
    heat: NDArray[np.float32] | None = None
    error: str = ""


class Judge:
    """Scores images one by one.

    Args:
        model: A checkpoint, an OpenVINO or ONNX model, or a folder with one export.

    Raises:
        FileNotFoundError: If there is none, or no calibration beside an export.
        ValueError: If it is something else, or a checkpoint without calibration.
    """

    def __init__(self, model: Path) -> None:
        opened = open_model(model)
        self.calibration = opened.calibration()
        self.map_note = getattr(opened.model, "map_note", "") if isinstance(opened, Checkpoint) else ""
        self._outputs = opened.raw_outputs(_hint(opened, self.calibration.arithmetic))

    def __call__(self, path: Path) -> Judged:
        """Score an image; what is no usable image gets an error."""
        try:
            image = read(str(path))
        except UnusableImageError as error:
            return Judged(path, error=str(error))
        raw, heat = self._outputs(image)
        if not np.isfinite(raw):
            return Judged(path, error=f"the model gives it the score {raw}")
        return Judged(path, raw, float(p_values(raw, self.calibration.image.normal_scores)), heat)


def _hint(opened: Checkpoint | Export, arithmetic: str) -> str | None:
    """OpenVINO's precision that the calibration is of: bfloat16 moves scores."""
    if opened.path.suffix != ".xml":
        return None
    found = re.search(r"(\w+) precision", arithmetic)
    hint = "f32" if found is None else found[1]  # the engine's
    return None if hint == "default" else hint
