"""One pass of a frozen teacher over the training images, whose result every epoch of a distillation reads."""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from anomalib_defend.nn.distance import TeacherOutput, TeacherShape

from .normal_images import not_deterministic
from .teacher_cache import RAM, CacheLayout, CachePlace, TeacherCache, choose_place, fingerprint, reserve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from anomalib.data import Batch
    from torch import nn

    from .run import Run

logger = logging.getLogger(__name__)

CACHE_DTYPE = torch.float16  # of the teacher's normalised tokens: a relative error of 2 ** -11


class TeacherPass:
    """Keeps what the teacher makes of each training image, where that is possible and pays.

    All images, in their own order and in batches of that order: nothing depends on the epoch in which a run was
    resumed, nor on the number of processes, which take the batches in turns.

    Args:
        place: Where the user wants it.
        shape: Of what the teacher makes of an image.
    """

    def __init__(self, place: CachePlace, shape: TeacherShape) -> None:
        self._wanted, self._shape = place, shape
        self._place: CachePlace = "off"
        self._layout: CacheLayout | None = None
        self._file: Path | None = None  # on disk, to be removed
        self._cache: TeacherCache | None = None

    @property
    def kept(self) -> bool:
        """Whether the teacher's output is kept."""
        return self._place != "off"

    def announce(self, run: Run, epochs: int) -> None:
        """Decide and say so, before the first epoch.

        Args:
            run: The training.
            epochs: Of the distillation.

        Raises:
            ValueError: If the cache does not fit where it is wanted.
        """
        place: CachePlace = "off"
        reason = 'teacher_cache="off"' if self._wanted == "off" else reason_against(run, epochs)
        if not reason:
            self._layout = CacheLayout(len(run.images), self._shape, CACHE_DTYPE)
            place = choose_place(self._wanted, self._layout.bytes, _folder(run))
            if place == "off":
                reason = f"{self._layout} are too much for what is free"
        self._place = run.broadcast(place)  # one process decides for all
        if self._place == "off":
            logger.info("Teacher cache: off (%s). The teacher runs in every step.", reason)
        else:
            where = f"in memory ({RAM})" if self._place == "ram" else f"in {_folder(run)}"
            logger.info("Teacher cache: %s %s.", self._layout, where)

    def open(self, run: Run, teacher: nn.Module, how: Iterable[object]) -> bool:
        """Map the cache into every process.

        Args:
            run: The training.
            teacher: The network, whose weights are a part of the cache's key.
            how: What else the output depends on, as what it prints.

        Returns:
            Whether it has to be filled.
        """
        if not self.kept:
            return False
        assert self._layout is not None  # noqa: S101 - for the type checker
        paths, first = run.images.paths, run.local_rank == 0
        if self._place == "ram":
            name = run.broadcast(f"anomalib-defend-{uuid.uuid4().hex}")
            file = RAM / f"{name}-{run.node_rank}"  # what is launched as several nodes may be one machine
        else:
            loader = run.images.loader
            settings = (self._layout, run.transform, run.images.dataset.augmentations, *how)
            where = (loader.batch_size, run.precision, run.device.type)
            key = fingerprint(teacher.state_dict(), paths, *map(repr, settings), *where)
            folder, key = run.broadcast((_folder(run), key))
            self._file = file = folder / f"{key}-{run.node_rank}.features"

        part = file.with_suffix(".part")
        complete = file.is_file()
        run.barrier()  # everyone has looked
        if first and not complete:
            reserve(part, self._layout.bytes)
        run.barrier()  # it is there
        self._cache = TeacherCache(file if complete else part, paths, self._layout)
        run.barrier()  # everyone has mapped it
        if first and self._place == "ram":
            part.unlink()
        if complete:
            logger.info("Teacher cache: %s is complete.", file)
        return not complete

    def fill(self, run: Run, teacher: nn.Module, output: Callable[[Batch], TeacherOutput]) -> None:
        """Compute what is kept, once `open` has asked for it.

        Args:
            run: The training.
            teacher: The network, in evaluation mode meanwhile.
            output: What is kept of a batch of images.
        """
        assert self._cache is not None  # noqa: S101 - for the type checker
        start = time.monotonic()
        for rows, batch in run.images.batches("Teacher", teacher, as_trained=True):
            self._cache.write(rows[0], output(batch))
        run.barrier()  # all rows are written
        if run.local_rank == 0:
            self._cache.flush()
            if self._file is not None:
                with suppress(FileNotFoundError):  # another run has filled the same file, and given it its name
                    self._file.with_suffix(".part").replace(self._file)
        logger.info("The teacher has seen the training images, in %.1f s.", time.monotonic() - start)

    def read(self, paths: Iterable[str], device: torch.device) -> TeacherOutput | None:
        """What was kept of these images, if anything is.

        Raises:
            KeyError: If an image is not one of those that the cache was made for.
        """
        return None if self._cache is None else self._cache.read(paths, device)

    def close(self, run: Run, failed: bool) -> None:
        """Let go of the cache; a complete one on disk stays for the run that resumes a failed one."""
        self._cache = None
        if self._file is not None and run.local_rank == 0 and not failed:
            self._file.unlink(missing_ok=True)
            with suppress(OSError):  # another run's is in it
                self._file.parent.rmdir()


def reason_against(run: Run, epochs: int) -> str:
    """Why the teacher's output cannot be kept, or need not be; empty if it can."""
    if not isinstance(run.strategy, SingleDeviceStrategy | DDPStrategy):
        return f"{type(run.strategy).__name__} splits the teacher over the processes"
    try:
        loader, dataset = run.images.loader, run.images.dataset
    except TypeError:
        return "the training data are no anomalib dataset of image files"
    augmentations = [*not_deterministic(dataset.augmentations), *not_deterministic(run.transform)]
    if augmentations:
        return f"the training images are augmented by {', '.join(augmentations)}"
    images = len(run.images)
    per_epoch = min(images, run.batches_per_epoch * run.world_size * (loader.batch_size or 1))
    if epochs * per_epoch < 2 * images:
        return "the distillation sees the images less than twice"
    return ""


def _folder(run: Run) -> Path:
    return run.shared_folder / "teacher_cache"
