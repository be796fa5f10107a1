"""The model's exports, as `anomalib export` writes them, compiled in several ways."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from anomalib.data import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import openvino
    from torch import Tensor, nn

    from anomalib_defend.models import Defend

CALIBRATION = 100
COMPRESSIONS = {"f32": None, "int8 weights": "int8", "int8 PTQ": "int8_ptq"}


def export(model: Defend, root: Path, compression: str, calibration: Path) -> Path:
    """Write one variant; images of the folder ``calibration`` calibrate it."""
    data = Folder(
        "calibration", root=calibration, normal_dir=".", num_workers=0, test_split_mode="none", val_split_mode="none"
    )
    return model.to_openvino(root / compression, compression_type=COMPRESSIONS[compression], datamodule=data)


@functools.cache
def _core() -> openvino.Core:
    """One for all models.

    The first model that a core compiles gives the process a stack for its signals, and the core's end gives back the
    one before: of several cores the last to go may give back one that is freed already, and the next signal, such as
    the end of a data loader's worker, ends the process (OpenVINO 2026.4).
    """
    import openvino  # noqa: PLC0415 - optional extra

    return openvino.Core()


def scorer(xml: Path, threads: int, precision: str | None = None, *, count: bool = False) -> openvino.CompiledModel:
    """Compile an export with OpenVINO's defaults, but for threads, ``precision``, and counters of its operations."""
    config = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    return _core().compile_model(xml, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": count, **config})


def compiled(model: nn.Module, example: tuple[Tensor, ...], threads: int, precision: str | None) -> Any:
    """Compile a module for inputs like the example's, as `scorer` does."""
    import openvino  # noqa: PLC0415 - optional extra

    converted = openvino.convert_model(model, example_input=example, input=[list(item.shape) for item in example])
    config = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    return _core().compile_model(converted, "CPU", {"INFERENCE_NUM_THREADS": threads, **config})


def queue_scorer(xml: Path, threads: int, requests: int) -> Callable[[np.ndarray], Any]:
    """Compile for throughput and score a batch in several requests at once, on a part of the threads each."""
    import openvino  # noqa: PLC0415 - optional extra

    config = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(requests), "INFERENCE_NUM_THREADS": threads}
    queue = openvino.AsyncInferQueue(_core().compile_model(xml, "CPU", config), requests)

    def score(images: np.ndarray) -> None:
        for part in np.array_split(images, min(requests, len(images))):
            queue.start_async({0: part})
        queue.wait_all()

    return score
