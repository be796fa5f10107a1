"""What follows from the scores of n normal validation images: p-values, thresholds, and what to expect of them.

Nothing but the order of the scores enters. All of it holds for new normal images that are exchangeable with the
validation images (same camera, same selection, no near duplicates), on average over validation sets.

Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005 (p-values); Bates, Candès, Lei, Romano,
Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023 (many images at once); Benjamini,
Hochberg, "Controlling the false discovery rate", 1995.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import beta, betabinom

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_MANY = 100_000  # images: scipy sums a beta-binomial term by term
_ROUNDING = 1e-9  # (n + 1) * target_fpr may miss a whole number by this: 100 * 0.29


class Expected(NamedTuple):
    """What to expect of a rate or a count: its mean, and its central 95 % interval."""

    mean: float
    low: float
    high: float


def check_share(**arguments: float) -> None:
    """Check that shares lie in (0, 1).

    Raises:
        ValueError: If one does not; names it.
    """
    for name, value in arguments.items():
        if not 0 < value < 1:
            msg = f"{name}={value} must lie between 0 and 1 (both excluded)."
            raise ValueError(msg)


def p_values(scores: ArrayLike, normal: ArrayLike) -> NDArray[np.float64]:
    """The share of normal images that are at least as novel as each image: (1 + #{normal >= s}) / (n + 1).

    Among new normal images P(p <= t) <= t for every t. An image whose score is no number counts as the most novel.

    Args:
        scores: Scores of any shape, higher is more novel.
        normal: Scores [n] of normal images that trained nothing; none at all make every p-value 1.

    Returns:
        p-values of the shape of ``scores``, from 1 / (n + 1) to 1.
    """
    ordered = np.sort(np.asarray(normal).ravel())
    below = np.searchsorted(ordered, np.asarray(scores), side="left")  # NaN is sorted behind every number
    return (1 + len(ordered) - below) / (len(ordered) + 1)


def allowed_rank(count: int, target_fpr: float) -> int:
    """K = floor((n + 1) target_fpr): a new normal image exceeds the k-th largest of n scores at a rate of k / (n + 1).

    Below 1 no score keeps the rate: at least 1 / ``target_fpr`` - 1 images are needed.
    """
    return math.floor((count + 1) * target_fpr + _ROUNDING)


def needed_images(target_fpr: float) -> int:
    """The least number of normal validation images with which ``target_fpr`` can be kept."""
    return math.ceil(1 / target_fpr - _ROUNDING) - 1


def expected_rate(count: int, rank: int) -> Expected:
    """The rate of new normal images above the ``rank``-th largest of ``count`` scores: Beta(k, n + 1 - k).

    Over validation sets, for any continuous distribution of the scores; ties only lower it.
    """
    if rank > count:  # below the smallest score, which promises nothing
        return Expected(1.0, 0.0, 1.0)
    rate = beta(rank, count + 1 - rank)
    return Expected(float(rate.mean()), *map(float, rate.ppf([0.025, 0.975])))


def expected_count(count: int, rank: int, images: int) -> Expected:
    """How many of ``images`` new normal images lie above the ``rank``-th largest of ``count`` scores: beta-binomial."""
    if rank > count:
        return Expected(float(images), 0.0, float(images))
    above = _count(count, rank, images)
    return Expected(float(above.mean()), *map(float, np.round(above.ppf([0.025, 0.975]))))


def count_above(count: int, rank: int, images: int, least: int) -> float:
    """The chance that at least ``least`` of ``images`` new normal images lie above the ``rank``-th largest score."""
    if rank > count:
        return 1.0
    return float(_count(count, rank, images).sf(least - (1 if images <= _MANY else 0.5)))


def _count(count: int, rank: int, images: int) -> Any:
    """The distribution of a count: beta-binomial; of very many images a beta of the same mean and variance."""
    if images <= _MANY:
        return betabinom(images, rank, count + 1 - rank)
    total = count + 1
    total_of_same_variance = images * (total + 1) / (total + images) - 1
    share = rank / total
    return beta(share * total_of_same_variance, (1 - share) * total_of_same_variance, scale=images)


def select(values: ArrayLike, target_fdr: float) -> NDArray[np.bool_]:
    """Select images of which a share of at most ``target_fdr`` is expected to be normal (Benjamini-Hochberg).

    The p-values of many images share their validation images, which makes them positively dependent; the procedure
    stays valid, on average over validation sets (Bates et al.).

    Args:
        values: p-values [m] of all images that were scored.
        target_fdr: Accepted share of normal images among the selected ones, in (0, 1).

    Returns:
        Which images [m] are selected; perhaps none.

    Raises:
        ValueError: If ``target_fdr`` is not in (0, 1).
    """
    check_share(target_fdr=target_fdr)
    values = np.asarray(values, dtype=np.float64)
    return values <= cutoff(*np.unique(values, return_counts=True), target_fdr)


def cutoff(values: ArrayLike, counts: ArrayLike, target_fdr: float) -> float:
    """The largest p-value that `select` selects; -1 if it selects none.

    Args:
        values: Different p-values, ascending.
        counts: How many images have each of them.
        target_fdr: As for `select`.
    """
    values, up_to = np.asarray(values, dtype=np.float64), np.cumsum(np.asarray(counts))
    images = up_to[-1] if len(up_to) else 0
    kept = np.flatnonzero(values <= target_fdr * up_to / max(images, 1) + 1e-12)
    return float(values[kept[-1]]) if len(kept) else -1.0


def least_fdr(count: int, selected_share: float) -> float:
    """The least ``target_fdr`` with which a share of the scored images can be selected at all.

    No p-value is below 1 / (n + 1): where at most a share s of the images is more novel than every validation image,
    nothing is selected below 1 / (s (n + 1)).

    Args:
        count: Number n of normal validation images.
        selected_share: s, in (0, 1].
    """
    return 1 / (selected_share * (count + 1))
