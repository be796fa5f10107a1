"""The model's exports, as `anomalib export` writes them, compiled in several ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anomalib.data import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anomalib_defend.models import Defend

CALIBRATION = 100
COMPRESSIONS = {"f32": None, "int8 weights": "int8", "int8 PTQ": "int8_ptq"}


def export(model: Defend, root: Path, compression: str, calibration: Path) -> Path:
    """Write one variant; images of the folder ``calibration`` calibrate it."""
    data = Folder(
        "calibration", root=calibration, normal_dir=".", num_workers=0, test_split_mode="none", val_split_mode="none"
    )
    return model.to_openvino(root / compression, compression_type=COMPRESSIONS[compression], datamodule=data)


def scorer(xml: Path, threads: int, precision: str | None = None) -> Callable[[np.ndarray], Any]:
    """Compile an export with OpenVINO's defaults, but for threads and ``precision``."""
    import openvino  # noqa: PLC0415 - optional extra

    config = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    return openvino.Core().compile_model(xml, "CPU", {"INFERENCE_NUM_THREADS": threads, **config})


def queue_scorer(xml: Path, threads: int, requests: int) -> Callable[[np.ndarray], Any]:
    """Compile for throughput and score a batch in several requests at once, on a part of the threads each."""
    import openvino  # noqa: PLC0415 - optional extra

    config = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(requests), "INFERENCE_NUM_THREADS": threads}
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(xml, "CPU", config), requests)

    def score(images: np.ndarray) -> None:
        for part in np.array_split(images, min(requests, len(images))):
            queue.start_async({0: part})
        queue.wait_all()

    return score
