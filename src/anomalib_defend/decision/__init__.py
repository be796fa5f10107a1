"""From score to decision: p-values, thresholds that can be moved, and one table of results."""

from .calibration import Calibration, Level, calibration_path, p_value, raw_score
from .conformal import Expected, expected_count, expected_rate, least_fdr, p_values, select

__all__ = [
    "Calibration",
    "Expected",
    "Level",
    "calibration_path",
    "expected_count",
    "expected_rate",
    "least_fdr",
    "p_value",
    "p_values",
    "raw_score",
    "select",
]
