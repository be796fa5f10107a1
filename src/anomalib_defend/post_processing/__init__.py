"""Thresholds from normal images alone, and scaling that keeps the order of scores."""

from .metrics import AUROC
from .normal_quantile import NormalQuantilePostProcessor

__all__ = ["AUROC", "NormalQuantilePostProcessor"]
