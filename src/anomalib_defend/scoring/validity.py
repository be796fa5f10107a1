"""Whether a threshold is still valid: the p-values of all scored images against those of normal ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from anomalib_defend.decision.conformal import allowed_rank, count_above, expected_count
from anomalib_defend.files.names import to_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anomalib_defend.decision.conformal import Expected

LEVELS = (0.05, 0.5)
CHANCE = 0.001
"""Below it, p-values are called far more than those of normal images."""


class Count(NamedTuple):
    """How many p-values of how many images are at most ``level``, and what is expected of normal images."""

    level: float
    found: int
    images: int
    expected: Expected
    chance: float
    """Of at least as many, if all images were normal and like the validation images."""


def counted(level: float, found: int, images: int, validation: int) -> Count | None:
    """Compare a count with that of normal images: a beta-binomial test, over images and over validation sets.

    A binomial test would take the rate of the one validation set for the true one, and alarm at every large archive.

    Args:
        level: Of the p-values.
        found: How many are at most ``level``.
        images: How many there are.
        validation: Number n of normal validation images.

    Returns:
        None where no p-value can be at most ``level``, or there are none.
    """
    rank = allowed_rank(validation, level)
    if not images or not rank:
        return None
    chance = count_above(validation, rank, images, found)
    return Count(level, found, images, expected_count(validation, rank, images), chance)


def answer(at_most: Callable[[float], tuple[int, int]], validation: int, model: Path) -> str | None:
    """The one line that answers the question; None where nothing is known.

    Args:
        at_most: How many p-values are at most a level, and of how many.
        validation: Number n of normal validation images.
        model: That scored.
    """
    counts = [counted(level, *at_most(level), validation) for level in LEVELS]
    known = [count for count in counts if count is not None]
    return sentence(known, model) if known else None


def sentence(counts: list[Count], model: Path) -> str:
    """The one line, of counts."""
    told = "; ".join(
        f"{count.found} of {count.images} p-values are at most {count.level:g} (of normal images "
        f"{count.expected.mean:.0f}, 95 % interval {count.expected.low:.0f} to {count.expected.high:.0f})"
        for count in counts
    )
    if all(count.chance >= CHANCE for count in counts):
        return f"Is the threshold still valid? {told}: nothing speaks against it."
    return (
        f"Is the threshold still valid? {told}: far more than of normal images. Either much is novel, or the images "
        "differ from the validation images (another camera, another selection), and the threshold does not hold for "
        f"them: `anomalib-defend threshold {to_text(str(model))} --calibrate FOLDER` calibrates anew from normal "
        "images like these."
    )
