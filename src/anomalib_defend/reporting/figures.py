"""What a table of results says in numbers: nothing here knows of files or pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anomalib_defend.decision.ranking import (
    REPLICATES,
    area_under_roc,
    average_precision,
    counted,
    draws,
    false_positive_rate,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from anomalib_defend.decision.calibration import Calibration
    from anomalib_defend.decision.table import Row

BINS = 40
_POINTS = 400  # of a curve; a page is not wider than twice as many pixels
_MARGIN = 0.02  # of the range of scores, beyond its ends
MEASURES = {
    "AUROC": area_under_roc,
    "AUPR": average_precision,
    "FPR at 95 % TPR": false_positive_rate,
}


class Estimate(NamedTuple):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curves:
    """ROC and precision-recall as points between 0 and 1, and what they come to.

    Attributes:
        roc: False alarm rate and share of the novel images that is found.
        recall: That share and precision.
        measures: AUROC, AUPR (average precision) and false positive rate at 95 % true positive rate.
    """

    roc: list[tuple[float, float]]
    recall: list[tuple[float, float]]
    measures: dict[str, Estimate]


@dataclass(frozen=True)
class Histogram:
    """Shares of the normal, the novel, or the unlabelled images (``None``) in equal steps of the score."""

    low: float
    high: float
    shares: dict[bool | None, list[float]]


def curves(rows: Sequence[Row], replicates: int = REPLICATES, seed: int = 0) -> Curves | None:
    """ROC and precision-recall of scored and labelled images; None unless some are normal and some novel.

    The raw scores rank, where all images have one: scaled ones have ties in float32. Intervals are the 2.5 and 97.5 %
    quantiles over replicates of the test images, drawn within normal and novel ones.
    """
    known = [row for row in rows if row.true_label is not None]
    labels = np.array([row.true_label for row in known], dtype=int)
    if len(set(labels.tolist())) < 2:
        return None
    raw = all(row.raw_score is not None for row in known)
    scores = np.array([row.raw_score if raw else row.score for row in known], dtype=np.float64)
    novel, normal = counted(labels, scores)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in MEASURES}
    for weights in draws(labels, np.random.default_rng(seed), replicates):
        counts = counted(labels, scores, weights)
        for name, measure in MEASURES.items():
            found[name].append(measure(*counts))
    measures = {
        name: Estimate(
            float(measure(novel, normal)[0]), *map(float, np.quantile(np.concatenate(found[name]), [0.025, 0.975]))
        )
        for name, measure in MEASURES.items()
    }
    shown = np.unique(np.linspace(0, novel.shape[1] - 1, _POINTS).round().astype(int))
    found_share = (novel[0] / novel[0, -1])[shown]
    alarms, precision = (normal[0] / normal[0, -1])[shown], (novel[0] / (novel[0] + normal[0]))[shown]
    return Curves(
        [(0.0, 0.0), *zip(alarms.tolist(), found_share.tolist(), strict=True)],
        list(zip(found_share.tolist(), precision.tolist(), strict=True)),
        measures,
    )


def histogram(rows: Sequence[Row], threshold: float | None) -> Histogram:
    """Shares of the scores of scored images, with room for the threshold."""
    scores = [row.score for row in rows if row.score is not None]
    ends = [*scores, *([] if threshold is None else [threshold])]
    low, high = min(ends), max(ends)
    margin = _MARGIN * (high - low) or 0.01
    low, high = low - margin, high + margin
    shares = {}
    for label in (False, True, None):
        own = [row.score for row in rows if row.true_label is label and row.score is not None]
        if own:
            counts, _ = np.histogram(own, BINS, (low, high))
            shares[label] = (counts / len(own)).tolist()
    return Histogram(low, high, shares)


def threshold_of(rows: Sequence[Row], calibration: Calibration | None = None) -> float | None:
    """The score above which images were called novel; None where there are no labels.

    Where the labels follow it, that of the calibration, the table's own for scores that were not scaled, or 1/2; else
    the middle between normal and novel ones.

    Raises:
        ValueError: If the labels do not follow from the scores.
    """
    labelled = [row for row in rows if row.label is not None and row.score is not None]
    if not labelled:
        return None
    below = max((row.score for row in labelled if not row.label and row.score is not None), default=-math.inf)
    above = min((row.score for row in labelled if row.label and row.score is not None), default=math.inf)
    if below >= above:
        msg = (
            f"The labels do not follow from the scores: one image of score {above:g} is called novel, and one of "
            f"{below:g} normal. Does the table hold the results of two models?"
        )
        raise ValueError(msg)
    candidates: list[float | None] = [None if calibration is None else _threshold_of_scores(calibration)]
    if all(row.raw_score in {None, row.score} for row in labelled):
        candidates.append(labelled[0].threshold)
    for candidate in (*candidates, 0.5):
        if candidate is not None and below <= candidate < above:
            return candidate
    if math.isinf(below) or math.isinf(above):
        return above - 1e-6 if math.isinf(below) else below
    return (below + above) / 2


def _threshold_of_scores(calibration: Calibration) -> float:
    """The threshold in the table's unit; an ``image_sensitivity`` moves labels, but no scores."""
    return 1 - calibration.sensitivity if calibration.normalized else calibration.label_threshold


def validation_scores(calibration: Calibration) -> list[float]:
    """The normal validation images' scores as the table has them, sorted."""
    raw = calibration.image.normal_scores
    return sorted(map(float, calibration.image.scaled(raw) if calibration.normalized else raw))
