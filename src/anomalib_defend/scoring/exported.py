"""An exported OpenVINO model that scores batches."""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data import ImageBatch

from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.conformal import p_values
from anomalib_defend.decision.exports import OpenVINOGraph, write

from .images import UnusableImageError, read
from .resizes import resized, size_without_resize, without_resizes
from .runtime import compiled, core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from anomalib_defend.decision.calibration import Calibration
    from anomalib_defend.decision.models import Export

    from .resizes import Size

BATCH = 8  # from here on, a larger batch saves less than the noise of a measurement
MAPS = {"anomaly_map", "pred_mask"}


class ExportedScorer:
    """Scores batches, several at a time, each on one core.

    Images are resized as the engine does before the model sees them, where that changes no score, and the model's own
    resize is left out: it is two products of dense matrices, much more work, and images of one size can share a batch.

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
        self.size = size_without_resize(model)
        self._inner: Size | None = None  # to which images are resized again, where the whole of them is seen smaller
        self.batch_size = 1 if self.size is None else BATCH
        if self.size is not None:
            model, self._inner = without_resizes(model, self.size, same_size=maps)
            model.reshape([-1, 3, *(self._inner or self.size)])
        self._names = [next(iter(output.get_names()), "") for output in model.outputs[:-1]]
        # pinned threads begin with the first core, and those of the next process of this machine do so, too
        streams = {"NUM_STREAMS": str(parallel), "ENABLE_CPU_PINNING": parallel >= usable_cores()}
        if precision(hint) != "f32" and not _has(model, "FakeQuantize"):
            weights_as_floats(model)
        network = compiled(model, hint, INFERENCE_NUM_THREADS=parallel, **streams)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(parallel):
            self._requests.put(network.create_infer_request())

    def prepare(self, path: str) -> Tensor:
        """Read an image, and resize it."""
        image = read(path)
        return image if self.size is None else resized(image, self.size)

    def score(self, paths: Sequence[str], images: Sequence[Tensor]) -> ImageBatch:
        """Score a batch; it waits where all requests are in use."""
        batch = torch.stack(list(images))
        request = self._requests.get()
        try:
            pixels = batch if self._inner is None else resized(batch, self._inner)
            request.start_async({0: pixels.numpy()}, share_inputs=True)
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


def precision(hint: str | None) -> str:
    """The precision that OpenVINO computes in, on this machine."""
    return hint or str(core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name())


def is_coarse(export: Export, hint: str | None) -> bool:
    """Whether a model's arithmetic has fewer bits than float32, on this machine."""
    graph = export.graph
    assert isinstance(graph, OpenVINOGraph)  # noqa: S101 - it is a .xml
    # where weights alone have 8 bits, OpenVINO rounds what they are multiplied with to as many, as it runs
    return precision(hint) != "f32" or _has(graph.model, "FakeQuantize") or _has_small_weights(graph.model)


def rounding(export: Export, hint: str | None, paths: Sequence[str]) -> float:
    """What the batch or the processor may change of raw scores, as measured: twice the largest difference from float32.

    Each of two scores of an image may be that far from it. Of n images like a new one, the new one's difference is the
    largest with a chance of 1 / (n + 1).

    Args:
        export: The model.
        hint: OpenVINO's precision. In f32 there is nothing to compare with, and the result is 0.
        paths: Images to measure it on; those that cannot be read are left out.
    """
    if precision(hint) == "f32":
        return 0.0
    exact, rounded = (ExportedScorer(export, None, each, maps=False, parallel=1) for each in ("f32", hint))
    largest = 0.0
    for start in range(0, len(paths), exact.batch_size):
        images = []
        for path in paths[start : start + exact.batch_size]:
            with suppress(UnusableImageError):
                images.append(exact.prepare(path))
        expected = _raw_scores(exact, images, exact.batch_size)
        for size in (1, rounded.batch_size):
            largest = max(largest, np.abs(_raw_scores(rounded, images, size) - expected).max(initial=0.0))
    return 2 * largest


def weights_as_floats(model: Any) -> None:
    """Replace weights of 8 bits by what they stand for: bf16 multiplies those of 8 bits no faster.

    From some of them OpenVINO (2026.4) computes wrong scores in bf16, where several batches are computed at a time: it
    reads memory that it has freed (docs/upstream.md).
    """
    from openvino import passes  # noqa: PLC0415 - optional extra

    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def _has(model: Any, kind: str) -> bool:
    return any(node.get_type_name() == kind for node in model.get_ops())


def _has_small_weights(model: Any) -> bool:
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return any(node.get_output_element_type(0).get_type_name() in {"u8", "i8"} for node in constants)


def _raw_scores(scorer: ExportedScorer, images: Sequence[Tensor], size: int) -> NDArray[np.float64]:
    """Raw scores [n] of images in batches."""
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return np.array([score for part in parts for score in scorer.score([""] * len(part), part).raw_score.tolist()])
