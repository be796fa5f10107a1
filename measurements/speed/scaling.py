"""Time and memory as the work grows: by number of images, and by their size.

Stage 1: an epoch. Stage 2: two epochs, of which the first one fills the cache. Scoring: every image once. The cache, a
file that is mapped into memory, is told apart: it grows with the images by design, and is bounded or left out by
``teacher_cache``. The last batch is filled up: 250 images are 256 in batches of 32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from .networks import random_images, random_model
from .report import Options, Result, table
from .timing import in_fresh_process, peak_mib
from .training import OURS, STAGES, Step, make_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anomalib_defend.models import Defend

JOBS = ("stage 1", "stage 2", "scoring")
SIDES, SIDE = (112, 224, 336), 224  # pixels, and the size at which the number of images grows


class Cost(NamedTuple):
    """What a job takes."""

    seconds: float
    mib: float
    """Peak memory beyond the networks, and beyond the cache."""
    cache_mib: float = 0.0


Costs = dict[tuple[str, int, int], Cost]
"""By job, number of images and their side."""


class Work:
    """One job on generated images, batch by batch.

    Args:
        job: One of the ``JOBS``.
        defend: The model.
        count: Number of images.
        batch: Images of a step.
        clock: What time is measured.
    """

    def __init__(self, job: str, defend: Defend, count: int, batch: int, clock: Callable[[], float]) -> None:
        self.defend, self.model, self.batch = defend, defend.model, batch
        self.clock = clock
        self.count = -(-count // batch) * batch
        self.images = random_images(batch, self.model.image_size)
        stage = 2 if job == "stage 2" else 1
        self.step = Step(self.model, self.images, STAGES[stage][OURS[stage]], stage)
        self.seconds = 0.0
        if job == "stage 2":
            self.step.cache = make_cache(self.model, self.count)
        epochs: dict[str, list[Callable[[], None]]] = {
            "stage 1": [self.step],
            "stage 2": [self.fill, self.step],
            "scoring": [self.score],
        }
        self.epochs = epochs[job]

    def fill(self) -> None:
        """A step that runs the teacher and keeps what it says."""
        assert self.step.cache is not None  # noqa: S101 - for the type checker
        self.step.cache.write(int(self.step.names[0]), self.model.teacher_output(self.images, attend=True))
        self.step()

    @torch.inference_mode()
    def score(self) -> None:
        """Score a batch."""
        self.defend.eval()(self.images)

    def __call__(self) -> None:
        """Do all of it; ``seconds`` is the time without generating images."""
        for step in self.epochs:
            for first in range(0, self.count, self.batch):
                self.images = self.step.images = random_images(self.batch, self.model.image_size)
                self.step.names = [str(first + number) for number in range(self.batch)]
                start = self.clock()
                step()
                self.seconds += self.clock() - start


def measure(
    job: str, backbone: str, count: int, side: int, batch: int, threads: int, clock: Callable[[], float]
) -> Cost:
    """Cost of a job; to be called in a fresh process."""
    torch.set_num_threads(threads)
    work = Work(job, random_model(backbone, side), count, batch, clock)
    peak = peak_mib(work)
    cache = 0.0 if work.step.cache is None else work.step.cache.layout.bytes / 2**20
    return Cost(work.seconds, peak - cache, cache)


def prefix(options: Options) -> str:
    """What figures measured in this way are called, before the cell."""
    clock = "CPU time" if options.cpu_time else "elapsed time"
    return f"scaling, {options.backbones[0]}, batch {options.batch}, {options.threads} threads, {clock} "


def measured_before(options: Options) -> Costs:
    """Cells that ``--json`` holds already: they are not measured again."""
    if options.json is None or not options.json.exists():
        return {}
    return {
        tuple(json.loads(name.removeprefix(prefix(options)))): Cost(*values)
        for name, values in json.loads(options.json.read_text()).items()
        if name.startswith(prefix(options))
    }


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of the line through the logarithms: y grows as x to this power."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def run(options: Options) -> Iterator[Result]:
    """Measure with the first encoder; the size of the images grows at the smallest number of them."""
    backbone, counts = options.backbones[0], options.counts
    measured = measured_before(options)
    fits: list[dict[str, object]] = []
    for job in JOBS:
        rows: list[dict[str, object]] = []
        for count, side in sorted({(count, SIDE) for count in counts} | {(counts[0], side) for side in SIDES}):
            if (job, count, side) not in measured:
                arguments = (job, backbone, count, side, options.batch, options.threads, options.clock)
                measured[job, count, side] = in_fresh_process(measure, *arguments)
            cost = measured[job, count, side]
            yield Result("", {prefix(options) + json.dumps([job, count, side]): list(cost)})
            row = {backbone: job, "images": count, "pixels": side, "s": cost.seconds, "peak memory, MiB": cost.mib}
            rows.append({**row, "and the cache, MiB": cost.cache_mib or None})
        yield Result(table(rows))
        fit: dict[str, object] = {"grows as a power of": job}
        for name, x, cells in (
            ("images", counts, [(job, count, SIDE) for count in counts]),
            ("patches", [side**2 for side in SIDES], [(job, counts[0], side) for side in SIDES]),
        ):
            for index, what in enumerate(("time", "memory")):
                fit[f"{name}: {what}"] = exponent(list(x), [measured[cell][index] for cell in cells])
        fits.append(fit)
    yield Result(table(fits))
    if options.plot is not None:
        plot(measured, options.plot)


def plot(measured: Costs, file: Path) -> None:
    """Time and memory by number of images and by size, all axes logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    first = min(count for _, count, _ in measured)
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), sharey="row", layout="constrained")
    for column, label in enumerate(("images", "pixels of a side")):
        for row, what in enumerate(("seconds", "peak memory beyond the networks, MiB")):
            for job in JOBS:
                points = sorted(
                    (cell[1 + column], values[row])
                    for cell, values in measured.items()
                    if cell[0] == job and (cell[2] == SIDE if column == 0 else cell[1] == first)
                )
                axes[row, column].loglog(*zip(*points, strict=True), "o-", label=job)
            axes[row, column].set(xlabel=label, ylabel=what if column == 0 else "")
            ticks = sorted({cell[1 + column] for cell in measured})
            axes[row, column].set_xticks(ticks, labels=ticks, minor=False)
            axes[row, column].minorticks_off()
    axes[0, 0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
