"""What a checkpoint or an export says of one image, before any threshold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data.utils import read_image

from anomalib_defend.data.dataset import READ_ERRORS, inspect_files
from anomalib_defend.decision.calibration import ENGINE, p_value, raw_score
from anomalib_defend.decision.models import Checkpoint, open_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Outputs = tuple[float, NDArray[np.float32] | None]


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
    heat: NDArray[np.float64] | None = None
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
        self.map_note = ""
        if isinstance(opened, Checkpoint):
            loaded = opened.load().eval()
            self.map_note = getattr(loaded, "map_note", "")
            self._run: Callable[[NDArray[np.float32]], Outputs] = lambda images: _of_engine(loaded, images)
        elif opened.path.suffix == ".xml":
            self._run = _of_openvino(opened.path, self.calibration.arithmetic)
        else:
            self._run = _of_onnx(opened.path)

    def __call__(self, path: Path) -> Judged:
        """Score an image; what is no usable image gets an error."""
        try:
            unusable = inspect_files([str(path)], decode=True).unusable
            if unusable:
                return Judged(path, error=unusable[str(path)])
            image = torch.as_tensor(read_image(path, as_tensor=True)).numpy()[None]
        except READ_ERRORS as error:
            return Judged(path, error=str(error))
        score, shown = self._run(image)
        if not np.isfinite(score):
            return Judged(path, error=f"the model gives it the score {score}")
        heat = None
        if shown is not None:
            scaled_by = self.calibration.pixel if self.calibration.normalized else None
            heat = shown.astype(np.float64) if scaled_by is None else scaled_by.raw(shown)
        return Judged(
            path,
            float(raw_score(np.float32(score), self.calibration)),
            float(p_value(np.float32(score), self.calibration)),
            heat,
        )


@torch.inference_mode()
def _of_engine(model: Any, images: NDArray[np.float32]) -> Outputs:
    # as the engine does it: a graph for export resizes in another way, which moves scores a little
    predictions = model.post_processor(model.model(model.pre_processor.transform(torch.from_numpy(images))))
    heat = predictions.anomaly_map
    return predictions.pred_score.item(), None if heat is None else heat.float().squeeze().numpy()


def _of_openvino(path: Path, arithmetic: str) -> Callable[[NDArray[np.float32]], Outputs]:
    """In the arithmetic that the calibration is of: bfloat16 moves scores."""
    import openvino  # noqa: PLC0415 - optional extra

    found = re.search(r"(\w+) precision", arithmetic)
    hint = "f32" if arithmetic == ENGINE or found is None else found[1]
    config = {} if hint == "default" else {"INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    names = {name for output in compiled.outputs for name in output.get_names()}

    def run(images: NDArray[np.float32]) -> Outputs:
        found = compiled(images)
        return float(found["pred_score"].item()), (
            np.array(found["anomaly_map"]).squeeze() if "anomaly_map" in names else None
        )

    return run


def _of_onnx(path: Path) -> Callable[[NDArray[np.float32]], Outputs]:
    import onnxruntime  # noqa: PLC0415 - the user's own choice of engine

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: NDArray[np.float32]) -> Outputs:
        found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: images}), strict=True))
        heat = found.get("anomaly_map")
        return float(found["pred_score"].item()), None if heat is None else heat.squeeze()

    return run
