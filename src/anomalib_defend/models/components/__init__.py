"""What the models of this package share: anomalib's hooks, stages of a training, checkpoints, exports."""

from .lightning_model import NoveltyDetectorMixin
from .stage import Stage, Step

__all__ = ["NoveltyDetectorMixin", "Stage", "Step"]
