"""Random numbers that depend on seed, epoch and process alone, so that a resumed epoch draws those of the first run."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Set the random state of Python, NumPy and torch (every device) that an epoch starts with in one process.

    Nothing of the state itself has to be saved: a checkpoint that names seed and epoch restores it, with any number of
    processes and on any device.

    Args:
        seed: The run's seed.
        epoch: Number of the epoch, from 0. The networks are initialised before, from ``seed`` itself.
        rank: Number of the process, from 0: processes draw different masks and crops.
    """
    number = (seed + 1_000_003 * (epoch + 1) + 7_919 * rank) % 2**32
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - the global state, for augmentations that draw from it
    torch.manual_seed(number)
