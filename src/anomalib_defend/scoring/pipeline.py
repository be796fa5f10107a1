"""Decoding, resizing and inference at the same time, and the results in the order of the images."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch

from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.table import Row

from .images import UnusableImageError
from .journal import Entry

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from torch import Tensor


class Judged(Protocol):
    """What makes rows of images, see `judges`."""

    batch_size: int
    parallel: int

    def prepare(self, path: str, /) -> Tensor:
        """What is scored of an image; called in any thread."""

    def entries(self, paths: Sequence[str], images: Sequence[Tensor]) -> list[Entry]:
        """The rows of images that could be read."""


def score_rows(paths: Iterable[str], judge: Judged, readers: int | None = None) -> Generator[list[Entry], None, None]:
    """Score images, and yield their rows in order, a batch at a time.

    No more images are in memory than a few batches. A file that cannot be read is a row with its error.

    Args:
        paths: Of the images.
        judge: Scores them.
        readers: Threads that read images; by default twice as many as there are cores, since some wait for the disk.
    """

    def finish(group: Sequence[tuple[str, Future[Tensor]]]) -> list[Entry]:
        entries: dict[int, Entry] = {}
        images = {}
        for index, (path, future) in enumerate(group):
            try:
                images[index] = future.result()
            except UnusableImageError as error:  # noqa: PERF203 - each image may be one
                entries[index] = Entry(Row(path, error=str(error)))
        if images:
            found = judge.entries([group[index][0] for index in images], list(images.values()))
            entries.update(zip(images, found, strict=True))
        return [entries[index] for index in range(len(group))]

    remaining = iter(paths)
    threads = torch.get_num_threads()
    running: deque[Future[list[Entry]]] = deque()
    ahead: deque[list[tuple[str, Future[Any]]]] = deque()
    readers = readers or 2 * usable_cores()
    decoders = ThreadPoolExecutor(readers, "decode", initializer=torch.set_num_threads, initargs=(1,))
    scorers = ThreadPoolExecutor(judge.parallel, "score")
    try:
        while True:
            while len(ahead) <= judge.parallel + 1:
                group = [(path, decoders.submit(judge.prepare, path)) for path in islice(remaining, judge.batch_size)]
                if not group:
                    break
                ahead.append(group)
            if ahead and len(running) < 2 * judge.parallel:
                running.append(scorers.submit(finish, ahead.popleft()))
            elif running:
                yield running.popleft().result()
            else:
                return
    finally:
        for pool in (decoders, scorers):
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
