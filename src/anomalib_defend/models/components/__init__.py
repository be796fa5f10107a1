"""What the models of this package share: anomalib's hooks, checkpoints and exports that lose nothing."""

from .lightning_model import NoveltyDetectorMixin

__all__ = ["NoveltyDetectorMixin"]
