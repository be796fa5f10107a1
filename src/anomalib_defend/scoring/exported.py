"""An exported OpenVINO model that scores batches."""

from __future__ import annotations

import functools
import queue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from torchvision.transforms.v2 import functional as F

from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.conformal import p_values
from anomalib_defend.decision.exports import OpenVINOGraph, write

from .images import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from anomalib_defend.decision.calibration import Calibration
    from anomalib_defend.decision.models import Export

BATCH = 8  # from here on, a larger batch saves less than the noise of a measurement
MAPS = {"anomaly_map", "pred_mask"}
SAME = 1e-4  # of scores in float32: another resize makes a hundred times as much


@functools.cache
def _core() -> Any:
    """One for all models: the end of each of several may end the process (OpenVINO 2026.4)."""
    import openvino  # noqa: PLC0415 - optional extra

    return openvino.Core()


class ExportedScorer:
    """Scores batches, several at a time, each on one core.

    Images are resized as the engine does before the model sees them, where that changes no score: the model's own
    resize is two products of dense matrices, five times as much work, and images of one size can share a batch.

    Args:
        export: The model.
        calibration: What its scores mean; the graph's threshold moves to this one's.
        hint: OpenVINO's precision; its own default if None.
        maps: Compute heat maps, too.
        parallel: Number of batches at a time.

    Raises:
        ValueError: If it is no OpenVINO model.
    """

    def __init__(
        self, export: Export, calibration: Calibration | None, hint: str | None, *, maps: bool, parallel: int
    ) -> None:
        self.calibration, self.parallel = calibration, parallel
        if not isinstance(export.graph, OpenVINOGraph):
            msg = f"{export.path} is not scored: give an OpenVINO model (.xml) or a checkpoint (.ckpt)."
            raise ValueError(msg)
        if calibration is not None:
            write(export.graph, export.endings, calibration)
        model = export.graph.with_raw_outputs({"image": export.endings["image"]})
        for output in list(model.outputs):
            if not maps and output.get_names() & MAPS:
                model.remove_result(output.get_node())
        self.size = _size_without_resize(model)
        self.batch_size = 1 if self.size is None else BATCH
        if self.size is not None:
            model.reshape([-1, 3, *self.size])
        self._names = [next(iter(output.get_names()), "") for output in model.outputs[:-1]]
        # pinned threads begin with the first core, and those of the next process of this machine do so, too
        streams = {"NUM_STREAMS": str(parallel), "ENABLE_CPU_PINNING": parallel >= usable_cores()}
        compiled = _compiled(model, hint, INFERENCE_NUM_THREADS=parallel, **streams)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(parallel):
            self._requests.put(compiled.create_infer_request())

    def prepare(self, path: str) -> Tensor:
        """Read an image, and resize it."""
        image = read(path)
        return image if self.size is None else F.resize(image, list(self.size), antialias=True)

    def score(self, paths: Sequence[str], images: Sequence[Tensor]) -> ImageBatch:
        """Score a batch; it waits where all requests are in use."""
        batch = torch.stack(list(images))
        request = self._requests.get()
        try:
            request.start_async({0: batch.numpy()}, share_inputs=True)
            request.wait()
            *found, raw = [torch.from_numpy(np.array(tensor.data)) for tensor in request.output_tensors]
        finally:
            self._requests.put(request)
        values = dict(zip(self._names, found, strict=True))
        for name in ("pred_score", "pred_label"):
            if name in values:
                values[name] = values[name].reshape(len(paths))
        result = ImageBatch(image=batch, image_path=list(paths), **values)
        result.raw_score = raw.reshape(len(paths))
        if self.calibration is not None:
            normal = np.asarray(self.calibration.image.normal_scores, dtype=np.float32)
            result.p_value = torch.from_numpy(p_values(result.raw_score, normal))
        return result


def is_coarse(export: Export, hint: str | None) -> bool:
    """Whether a model's arithmetic has fewer bits than float32, on this machine."""
    precision = hint or _core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    graph = export.graph
    assert isinstance(graph, OpenVINOGraph)  # noqa: S101 - it is a .xml
    return precision != "f32" or any(graph.kind(node) == "FakeQuantize" for node in graph.model.get_ops())


def _compiled(model: Any, hint: str | None, **options: Any) -> Any:
    precision = {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
    try:
        return _core().compile_model(model, "CPU", {**precision, **options})
    except RuntimeError as error:
        if "INFERENCE_PRECISION_HINT" not in str(error):
            raise
        told = str(error).strip().splitlines()[-1]
        msg = f"--hint {hint} is no precision of OpenVINO's ({told}): give f32 or bf16, or leave it out."
        raise ValueError(msg) from error


def _size_without_resize(model: Any) -> tuple[int, int] | None:
    """Height and width of images for which the model's own resize changes nothing, if resizing to it first is the same.

    It is looked for in the graph, and tried: on a random image both ways have to give the same score.
    """
    own = model.input(0).get_partial_shape()
    if all(own[axis].is_static for axis in (2, 3)):
        return own[2].get_length(), own[3].get_length()
    size = next(filter(None, map(_static_size, model.get_ordered_ops())), None)
    if size is None:
        return None
    image = torch.rand(1, 3, 2 * size[0] + 5, size[1] // 2 + 3, generator=torch.Generator().manual_seed(0))
    compiled = _compiled(model, "f32")
    raw = [compiled(each.numpy())[len(model.outputs) - 1].item() for each in (image, _resized(image, size))]
    return size if abs(raw[0] - raw[1]) <= SAME * max(1.0, abs(raw[0])) else None


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.resize(image, list(size), antialias=True)


def _static_size(node: Any) -> tuple[int, int] | None:
    """Height and width of an operation's output, if it is images of one size."""
    if node.get_output_size() != 1:
        return None
    shape = node.get_output_partial_shape(0)
    if shape.rank.is_dynamic or len(shape) != 4 or not shape[0].is_dynamic or shape[1].is_dynamic:
        return None
    if shape[1].get_length() != 3 or shape[2].is_dynamic or shape[3].is_dynamic:
        return None
    return shape[2].get_length(), shape[3].get_length()
