"""Thresholds from normal images alone, scaling that keeps the order of scores, and a table of them."""

from .metrics import AUROC, F1Score
from .normal_quantile import NormalQuantilePostProcessor
from .predictions import PredictionTable
from .thresholds import require_threshold

__all__ = ["AUROC", "F1Score", "NormalQuantilePostProcessor", "PredictionTable", "require_threshold"]
