"""Random draws, each decided by a seed."""

import torch
from pandas import DataFrame


def permutation(length: int, seed: int | None) -> list[int]:
    """Return the numbers below ``length`` in an order that the seed decides; ``None`` draws a new one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randperm(length, generator=generator).tolist()


def subsample(samples: DataFrame, split: str, limit: int | None, seed: int | None) -> DataFrame:
    """Draw ``limit`` rows of a split, keeping the proportion of normal to novel and at least one of each."""
    rows = samples[samples["split"] == split]
    if limit is None or limit >= len(rows):
        return samples
    shuffled = rows.iloc[permutation(len(rows), seed)]
    normal, novel = (shuffled[shuffled["label"] == label].index.tolist() for label in ("normal", "novel"))
    num_normal = limit
    if novel:
        num_normal = min(max(round(limit * len(normal) / len(rows)), 1), limit - 1)
    dropped = normal[num_normal:] + novel[limit - num_normal :]
    return samples.drop(index=dropped).reset_index(drop=True)
