"""A checkpoint that scores batches, by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import ImageBatch

from .images import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from anomalib_defend.decision.calibration import Calibration

BATCH = 32


class CheckpointScorer:
    """Scores batches as the engine does, one at a time on all cores, or on a GPU where there is one.

    Args:
        model: The Lightning module.
        calibration: What its scores mean; its threshold moves to this one's.
    """

    parallel = 1
    batch_size = BATCH

    def __init__(self, model: Any, calibration: Calibration | None) -> None:
        model.require_training("score images")
        self.calibration, self._threads = calibration, torch.get_num_threads()
        if calibration is not None and calibration.target_fpr != model.post_processor.target_fpr:
            model.set_target_fpr(calibration.target_fpr)
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def prepare(self, path: str) -> Tensor:
        """Read an image, resize and normalise it."""
        image = read(path)
        prepared = self.model.pre_processor.transform(image)
        prepared.file_size = tuple(image.shape[-2:])  # goes with it through threads and batches
        return prepared

    @torch.inference_mode()
    def score(self, paths: Sequence[str], images: Sequence[Tensor]) -> ImageBatch:
        """Score a batch."""
        if torch.get_num_threads() != self._threads:  # decoding threads have set one, which new threads take over
            torch.set_num_threads(self._threads)
        batch = ImageBatch(image=torch.stack(list(images)).to(self.model.device), image_path=list(paths))
        batch.file_size = [image.file_size for image in images]  # type: ignore[attr-defined] # see `prepare`
        batch = self.model.predict_step(batch)
        self.model.post_processor.post_process_batch(batch)
        return batch
