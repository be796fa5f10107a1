"""What the models of this package share: anomalib's hooks, trainings that can be repeated, checkpoints, exports."""

from .lightning_model import NoveltyDetectorMixin
from .training import TrainedDetectorMixin

__all__ = ["NoveltyDetectorMixin", "TrainedDetectorMixin"]
