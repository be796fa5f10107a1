"""The data set's order when several processes share its images, and no image twice.

Process r of w gets images r, r + w, r + 2w ...; a test or a validation repeats the first images until all processes
have the same number of them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.data import DataLoader, DistributedSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import Batch
    from lightning import Trainer

T = TypeVar("T")


class DataOrder:
    """Finds out which images of the data set each batch of this process holds."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def start(self) -> None:
        """Begin an epoch."""
        self._seen.clear()

    def keep_once(self, batch: Batch, loaders: object, dataloader_idx: int = 0) -> list[int]:
        """Remove images that another process has, too, from a batch.

        A batch of which none is left stays as it is: anomalib's metrics fail on an empty one.

        Args:
            batch: The next batch of this process; changed in place.
            loaders: The trainer's loader, or list of loaders.
            dataloader_idx: Number of the loader that the batch comes from.

        Returns:
            The positions of the images that are left, among the images of all loaders; perhaps none.
        """
        all_loaders = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
        count, start = len(batch.image), self._seen.get(dataloader_idx, 0)
        self._seen[dataloader_idx] = start + count
        own, before = range(start, start + count), sum(map(_images, all_loaders[:dataloader_idx]))
        sampler = _sampler(all_loaders[dataloader_idx]) if all_loaders else None
        if not isinstance(sampler, DistributedSampler):
            return [before + position for position in own]
        positions = [index * sampler.num_replicas + sampler.rank for index in own]
        kept = [row for row, position in enumerate(positions) if position < len(sampler.dataset)]  # type: ignore[arg-type]
        if 0 < len(kept) < count:
            _take(batch, kept, count)
        return [before + positions[row] for row in kept]


def gather(values: Sequence[T]) -> list[T]:
    """The values of all processes, in every one of them; plain data or tensors on the CPU."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(values)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


def is_several(trainer: Trainer | None) -> bool:
    """Whether other processes work on the same data."""
    return trainer is not None and trainer.world_size > 1


def _sampler(loader: object) -> object:
    if not isinstance(loader, DataLoader):
        return None
    sampler = loader.sampler
    # Lightning hands a batch sampler to prediction loaders, with the images' sampler inside
    return sampler if isinstance(sampler, DistributedSampler) else getattr(loader.batch_sampler, "sampler", sampler)


def _images(loader: object) -> int:
    return len(loader.dataset) if isinstance(loader, DataLoader) else 0  # type: ignore[arg-type]


def _take(batch: Batch, rows: list[int], count: int) -> None:
    names = {item.name for item in fields(batch)} | vars(batch).keys()  # a model may have put more on it
    for name in sorted(names):
        value = getattr(batch, name)
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            setattr(batch, name, value[rows])
        elif isinstance(value, list) and len(value) == count:
            setattr(batch, name, [value[row] for row in rows])
