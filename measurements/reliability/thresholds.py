"""The false-positive rate that `NormalQuantilePostProcessor` reaches, by distribution and number of validation images.

``python -m measurements.reliability.thresholds``

Only the order of the scores enters, so the distributions differ by chance alone. The threshold is an order statistic:
the rate of images above the r-th smallest of n scores is Beta(n + 1 - r, r) distributed, whatever the scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from anomalib.data import ImageBatch, InferenceBatch
from scipy.stats import betabinom
from torch import Tensor

from anomalib_defend.post_processing import NormalQuantilePostProcessor

HELD_OUT = 1000
TARGET = 0.05
RANGE = (0.03, 0.07)
DISTRIBUTIONS: dict[str, Callable[[int], Tensor]] = {
    "Gaussian": lambda n: 0.7 + 0.05 * torch.randn(n),
    "log-normal": lambda n: (1.5 * torch.randn(n)).exp(),
    "bimodal": lambda n: torch.where(torch.rand(n) < 0.9, 0.5, 0.9) + 0.05 * torch.randn(n),
}


class Rates(NamedTuple):
    """False-positive rates among held-out normal images, over many validation sets."""

    mean: float
    low: float
    """2.5 % of the validation sets lead to a lower rate."""
    high: float
    """2.5 % of the validation sets lead to a higher rate."""
    in_range: float
    """Share of the validation sets that lead to a rate within ``RANGE``."""


def false_positive_rate(draw: Callable[[int], Tensor], validation: int) -> float:
    """Share of held-out normal images that are called novel, after one validation."""
    processor = NormalQuantilePostProcessor(TARGET)
    batch = ImageBatch(image=torch.zeros(validation, 3, 1, 1), pred_score=draw(validation))
    processor.on_validation_batch_end(None, None, batch)
    processor.on_validation_epoch_end(None, None)
    novel = processor(InferenceBatch(pred_score=draw(HELD_OUT))).pred_label
    return novel.float().mean().item()


def measure(draw: Callable[[int], Tensor], validation: int, repetitions: int) -> Rates:
    """Draw validation and held-out images again and again."""
    rates = np.array([false_positive_rate(draw, validation) for _ in range(repetitions)])
    in_range = (rates >= RANGE[0]) & (rates <= RANGE[1])
    low, high = np.quantile(rates, [0.025, 0.975])
    return Rates(rates.mean(), low, high, in_range.mean())


def theory(validation: int) -> Rates:
    """What follows for any continuous distribution: held-out images above the r-th of n are beta-binomial."""
    rank = min(validation, int(np.ceil((validation + 1) * (1 - TARGET))))
    above = betabinom(HELD_OUT, validation + 1 - rank, rank)
    low, high = above.ppf([0.025, 0.975]) / HELD_OUT
    in_range = above.cdf(HELD_OUT * RANGE[1]) - above.cdf(HELD_OUT * RANGE[0] - 1)
    return Rates(above.mean() / HELD_OUT, low, high, in_range)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--validation", nargs="+", type=int, default=[10, 19, 45, 100, 300, 1000, 4000])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print("| validation images | scores | mean rate | 95 % of the runs | within 0.03-0.07 |\n|---|---|---|---|---|")
    for validation in arguments.validation:
        rows = {name: measure(draw, validation, arguments.repetitions) for name, draw in DISTRIBUTIONS.items()}
        for name, rates in {**rows, "any (theory)": theory(validation)}.items():
            spread = f"{rates.low:.3f} to {rates.high:.3f}"
            print(f"| {validation} | {name} | {rates.mean:.3f} | {spread} | {rates.in_range:.0%} |")


if __name__ == "__main__":
    main()
