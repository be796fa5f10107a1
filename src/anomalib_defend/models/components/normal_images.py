"""The one pass over the normal images: what an encoder makes of each, in the data set's order, from all processes."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataset
from anomalib.data.transforms.utils import extract_transforms_by_type
from torch import distributed
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from .progress import track

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anomalib.data import Batch
    from anomalib.models.components import AnomalibModule
    from lightning.pytorch import Trainer
    from torch import Tensor, nn

# what they make of an image does not depend on chance
DETERMINISTIC = (v2.Resize, v2.CenterCrop, v2.Pad, v2.Grayscale, v2.RGB, v2.Normalize, v2.ToDtype, v2.ToImage)
ROWS_AT_ONCE = 4096  # that processes exchange


class NormalImages:
    """The training images beside the training: nothing of it, its random numbers included, changes.

    They are read as the trainer's own loader reads them and preprocessed as in a training step, but without
    augmentations. Networks are in evaluation mode meanwhile.

    Args:
        trainer: Its training loader names the images.
        model: Its pre-processor is applied.
        limit: Most images, spread evenly over the data set, that stand for all of them: of as many as
            ``limit_train_batches`` or ``fast_dev_run`` lets an epoch see. All if ``None``.
    """

    def __init__(self, trainer: Trainer, model: AnomalibModule, limit: int | None = None) -> None:
        self._trainer, self._model, self._limit = trainer, model, limit

    @property
    def loader(self) -> DataLoader[Any]:
        """The trainer's own loader of them.

        Raises:
            TypeError: If they come from something else than one torch DataLoader of an anomalib dataset.
        """
        loader = self._trainer.train_dataloader
        if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, AnomalibDataset):
            msg = (
                f"{type(self._model).__name__} reads the normal images from one torch DataLoader of an anomalib "
                f"dataset, but the training data are a {type(loader).__name__}: give a datamodule (--data)."
            )
            raise TypeError(msg)
        return loader

    @property
    def dataset(self) -> AnomalibDataset:
        """The images with the training's augmentations."""
        return self.loader.dataset

    @property
    def paths(self) -> list[str]:
        """Their files, in order."""
        return list(self.dataset.samples.image_path)

    def __len__(self) -> int:
        """Number of all images."""
        return len(self.dataset)

    def rows(self, limit: int | None = None) -> list[int]:
        """The images that one pass sees; at most ``limit`` of them, spread evenly."""
        count = len(self)
        most = min(count if most is None else most for most in (self._limit, limit))
        return [int(row) for row in torch.arange(most, dtype=torch.float64) * count / most] if most else []

    def features(
        self, encode: Callable[[Sequence[int], Batch], Tensor], what: str, network: nn.Module, limit: int | None = None
    ) -> Tensor:
        """What ``encode`` makes of the normal images.

        Args:
            encode: Takes rows of the data set and their images, on the device, and returns features [B, D].
            what: Description of the progress bar.
            network: In evaluation mode meanwhile, with the same buffers in all processes.
            limit: Most images, spread evenly: memory then does not grow with their number.

        Returns:
            Features [M, D], float32 on the CPU, in the data set's order, complete in every process.
        """
        rows = self.rows(limit)
        place = {row: index for index, row in enumerate(rows)}
        table = torch.empty(0)
        for own, batch in self.batches(what, network, rows):
            features = encode(own, batch).float().cpu()
            if not len(table):
                table = torch.zeros(len(rows), *features.shape[1:])
            table[[place[row] for row in own]] = features
        return self._from_all_processes(table, len(rows))

    def batches(
        self, what: str, network: nn.Module, rows: Sequence[int] | None = None, as_trained: bool = False
    ) -> Iterator[tuple[list[int], Batch]]:
        """This process's share of the images.

        Args:
            what: Description of the progress bar.
            network: In evaluation mode meanwhile, with the same buffers in all processes.
            rows: Which images; all if ``None``.
            as_trained: With the training's augmentations, and shared among the processes of each node, not among all.

        Yields:
            Their rows in the data set, and the preprocessed images on the device.
        """
        trainer, loader = self._trainer, self.loader
        rows, step = range(len(self)) if rows is None else rows, loader.batch_size or 1
        parts = [list(rows[start : start + step]) for start in range(0, len(rows), step)]
        rank, count = (
            (trainer.local_rank, trainer.num_devices) if as_trained else (trainer.global_rank, trainer.world_size)
        )
        own = parts[rank::count]
        share_buffers(trainer, network)
        dataset = self.dataset if as_trained else self.without_augmentations()
        batches = zip(own, self.read(dataset, list(chain(*own))), strict=True)
        with evaluating(network), torch.inference_mode(mode=False), torch.no_grad():
            for part, batch in track(trainer, what, batches, len(own)):
                with trainer.precision_plugin.forward_context():
                    yield part, self.preprocess(batch)

    def read(self, dataset: AnomalibDataset, order: Sequence[int]) -> DataLoader[Any]:
        """A loader like the training's own of other images or in another order."""
        loader = self.loader
        return DataLoader(
            dataset,
            batch_size=loader.batch_size or 1,
            sampler=order,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator(),  # the random numbers of the training are left alone
        )

    def preprocess(self, batch: Batch) -> Batch:
        """A batch from `read`, as a training step gets it."""
        batch = self._trainer.strategy.batch_to_device(batch)
        if self._model.pre_processor is not None:
            self._model.pre_processor.on_train_batch_start(self._trainer, self._model, batch, 0)
        return batch

    def without_augmentations(self) -> AnomalibDataset:
        """The same images, only resized as the model's pre-processor wants them."""
        plain: Any = copy.copy(self.dataset)
        resizes = extract_transforms_by_type(getattr(self._model.pre_processor, "transform", None), v2.Resize)
        if resizes:
            plain.augmentations = resizes[-1]
        return plain

    def _from_all_processes(self, table: Tensor, count: int) -> Tensor:
        trainer = self._trainer
        if trainer.world_size == 1:
            return table
        shapes: list[tuple[int, ...]] = [()] * trainer.world_size
        distributed.all_gather_object(shapes, tuple(table.shape[1:]) if len(table) else ())
        if not len(table):  # fewer batches than processes
            table = torch.zeros(count, *max(shapes, key=len))
        for chunk in table.split(ROWS_AT_ONCE):  # each row is zero everywhere but in one process
            chunk.copy_(trainer.strategy.reduce(chunk.to(trainer.strategy.root_device), reduce_op="sum"))
        return table


def not_deterministic(transform: Any) -> list[str]:
    """Names of the transforms whose result may depend on chance."""
    if transform is None or type(transform) in DETERMINISTIC:
        return []
    if type(transform) is v2.Compose:
        return [name for part in transform.transforms for name in not_deterministic(part)]
    return [type(transform).__name__]


def share_buffers(trainer: Trainer, network: nn.Module) -> None:
    """Give all processes the first one's buffers: their batch norms differ by their last batch."""
    if trainer.world_size > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, after which each part is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
