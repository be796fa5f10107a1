"""The paired difference of two models' AUROC under resampled test images, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from anomalib_defend.decision.ranking import REPLICATES, auroc, draws


@dataclass(frozen=True)
class Pair:
    """Two models' scores of the same test images.

    Attributes:
        images: Paths of the images.
        labels: 1: novel.
        ours: Scores of the model.
        theirs: Scores of the reference.
        weight: Share of this pair in the mean over all.
    """

    images: np.ndarray
    labels: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Difference:
    """AUROC of the model minus that of the reference, with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval is clear of zero."""
        return self.low > 0 or self.high < 0


def pair(ours: pd.DataFrame, theirs: pd.DataFrame) -> Pair | None:
    """Bring two tables of scores into the same order; ``None`` if they are not of the same images."""
    both = ours.merge(theirs, on=["image_path", "label"], suffixes=("_ours", "_theirs"), validate="one_to_one")
    if not len(both) == len(ours) == len(theirs):
        return None
    columns = (both[name].to_numpy() for name in ("image_path", "label", "score_ours", "score_theirs"))
    return Pair(*columns)


def difference(pairs: Sequence[Pair], seed: int = 0) -> Difference:
    """Mean difference over seeds or categories, with a bootstrap interval over the test images.

    An image that several pairs hold is drawn for all of them together. Images are drawn within their label; where an
    image's label differs from pair to pair, as it does between categories, among all.

    Args:
        pairs: Scores of both models: one pair a seed, or a category and seed.
        seed: Of the resampling.

    Returns:
        Mean, and the 2.5 and 97.5 % quantiles of the replicates. The training's own chance is not in the interval.
    """
    images, inverse = np.unique(np.concatenate([pair.images for pair in pairs]), return_inverse=True)
    members = np.split(inverse, np.cumsum([len(pair.images) for pair in pairs])[:-1])
    labels = np.full(len(images), -1)
    mixed = False
    for pair, member in zip(pairs, members, strict=True):
        mixed = mixed or bool(((labels[member] >= 0) & (labels[member] != pair.labels)).any())
        labels[member] = pair.labels
    strata = np.zeros(len(images)) if mixed else labels
    shares = np.array([pair.weight for pair in pairs])
    shares = shares / shares.sum()

    def mean(weights: np.ndarray | None) -> np.ndarray:
        differences = []
        for pair, member in zip(pairs, members, strict=True):
            drawn = None if weights is None else weights[:, member]
            differences.append(auroc(pair.labels, pair.ours, drawn) - auroc(pair.labels, pair.theirs, drawn))
        return np.einsum("p,pb->b", shares, np.stack(differences))

    replicates = np.concatenate([mean(weights) for weights in draws(strata, np.random.default_rng(seed), REPLICATES)])
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    return Difference(float(mean(None)[0]), float(low), float(high))
