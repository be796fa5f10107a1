"""Decoding, resizing and inference at the same time, and the results in the order of the images."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch

from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.table import Row, rows_of

from .images import UnusableImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from anomalib.data import ImageBatch
    from torch import Tensor

    from anomalib_defend.decision.calibration import Calibration


class Scorer(Protocol):
    """What scores batches: an export, or a checkpoint."""

    calibration: Calibration | None
    """What the scores mean, where it is known."""
    batch_size: int
    parallel: int
    """How many batches are scored at a time, each from a thread of its own."""

    def prepare(self, path: str) -> Tensor:
        """What is scored of an image; called in any thread.

        Raises:
            UnusableImageError: If the file cannot be read.
        """

    def score(self, paths: Sequence[str], images: Sequence[Tensor]) -> ImageBatch:
        """Score what ``prepare`` has returned, and say what it means."""


def score_rows(
    paths: Iterable[str], scorer: Scorer, add_pictures: Callable[[ImageBatch], None] | None = None
) -> Generator[list[Row], None, None]:
    """Score images, and yield their rows in order, a batch at a time.

    No more images are in memory than a few batches. A file that cannot be read is a row with its error.

    Args:
        paths: Of the images.
        scorer: Scores them.
        add_pictures: Draws the pictures of a batch, and puts their names on it; called in the thread that scored it.
    """
    threshold = None if scorer.calibration is None else scorer.calibration.label_threshold

    def finish(group: Sequence[tuple[str, Future[Tensor]]]) -> list[Row]:
        rows: dict[int, Row] = {}
        images = {}
        for index, (path, future) in enumerate(group):
            try:
                images[index] = future.result()
            except UnusableImageError as error:  # noqa: PERF203 - each image may be one
                rows[index] = Row(path, error=str(error))
        if images:
            batch = scorer.score([group[index][0] for index in images], list(images.values()))
            if add_pictures is not None:
                add_pictures(batch)
            rows.update(zip(images, rows_of(batch, threshold), strict=True))
        return [rows[index] for index in range(len(group))]

    remaining = iter(paths)
    threads = torch.get_num_threads()
    running: deque[Future[list[Row]]] = deque()
    ahead: deque[list[tuple[str, Future[Any]]]] = deque()
    # as many threads again as there are cores: some of them wait for the disk
    decoders = ThreadPoolExecutor(2 * usable_cores(), "decode", initializer=torch.set_num_threads, initargs=(1,))
    scorers = ThreadPoolExecutor(scorer.parallel, "score")
    try:
        while True:
            while len(ahead) <= scorer.parallel + 1:
                group = [(path, decoders.submit(scorer.prepare, path)) for path in islice(remaining, scorer.batch_size)]
                if not group:
                    break
                ahead.append(group)
            if ahead and len(running) < 2 * scorer.parallel:
                running.append(scorers.submit(finish, ahead.popleft()))
            elif running:
                yield running.popleft().result()
            else:
                return
    finally:
        for pool in (decoders, scorers):
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
