"""How well scores rank novel images before normal ones, also under resampled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

REPLICATES = 2000
_CHUNK = 100  # replicates at once: 40,000 images x 100 x 8 bytes


def counted(
    labels: NDArray[np.generic], scores: NDArray[np.generic], weights: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many novel and how many normal images score at least as high as each of the D distinct scores.

    Args:
        labels: (N,), 1: novel.
        scores: (N,), higher is more novel.
        weights: (B, N), how often each image is drawn in each of B replicates; once, if not given.

    Returns:
        Novel and normal images, (B, D) each, from the highest score to the lowest.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    order = np.argsort(scores, kind="stable")[::-1]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    novel = np.add.reduceat(np.where(labels[order] == 1, weights[:, order], 0.0), starts, axis=1)
    normal = np.add.reduceat(np.where(labels[order] == 1, 0.0, weights[:, order]), starts, axis=1)
    return np.cumsum(novel, axis=1), np.cumsum(normal, axis=1)


def area_under_roc(novel: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve (B,), ties counted half; NaN where a replicate has images of one label alone."""
    before = np.concatenate([np.zeros((len(novel), 1)), novel[:, :-1]], axis=1)
    steps = np.diff(normal, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore"):
        return (steps * (before + novel) / 2).sum(axis=1) / (novel[:, -1] * normal[:, -1])


def average_precision(novel: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the precision-recall curve (B,), as the sum of steps of recall times precision; NaN without novel."""
    called = novel + normal
    precision = np.divide(novel, called, out=np.zeros_like(novel), where=called > 0)
    with np.errstate(invalid="ignore"):
        return (np.diff(novel, axis=1, prepend=0.0) * precision).sum(axis=1) / novel[:, -1]


def false_positive_rate(
    novel: NDArray[np.float64], normal: NDArray[np.float64], true_positive_rate: float = 0.95
) -> NDArray[np.float64]:
    """Share of the normal images (B,) above the highest score at which the share of novel ones is found."""
    reached = novel >= true_positive_rate * novel[:, -1:] - 1e-9  # 0.95 * 20 is a little above 19
    first = reached.argmax(axis=1)
    with np.errstate(invalid="ignore"):
        return normal[np.arange(len(normal)), first] / normal[:, -1]


def auroc(
    labels: NDArray[np.generic], scores: NDArray[np.generic], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Area under the ROC curve (B,), see `counted` and `area_under_roc`."""
    return area_under_roc(*counted(labels, scores, weights))


def draws(
    strata: NDArray[np.generic], rng: np.random.Generator, replicates: int = REPLICATES
) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn, with replacement, as many of each stratum as it has.

    Args:
        strata: (N,), which images are drawn among each other.
        rng: Source of the draws.
        replicates: How many in all; whole hundreds.

    Yields:
        (100, N) weights.
    """
    for _ in range(replicates // _CHUNK):
        weights = np.empty((_CHUNK, len(strata)))
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), _CHUNK)
        yield weights
