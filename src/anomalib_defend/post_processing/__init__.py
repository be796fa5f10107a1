"""Thresholds from normal images alone, scaling that keeps the order of scores, and a table of them."""

from .metrics import AUROC
from .normal_quantile import NormalQuantilePostProcessor
from .predictions import PredictionTable

__all__ = ["AUROC", "NormalQuantilePostProcessor", "PredictionTable"]
