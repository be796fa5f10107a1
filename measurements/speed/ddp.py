"""Two processes on two cores beside one on one: what communication costs, and what sharing the machine costs.

Each process has one thread and the same number of images per step, so that two processes have twice the work. CPU time
tells what communication costs in work, not how long the processes wait for each other.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from anomalib_defend.models.defend.torch_model import DefendModel

from .networks import random_images, random_model
from .report import Options, Result, table
from .training import our_optimizer

WAYS = {"one process alone": (1, False), "two processes, apart": (2, False), "two processes, DDP": (2, True)}


class Loss(nn.Module):
    """A stage's loss as a module's forward, which DDP wraps."""

    def __init__(self, model: DefendModel, stage: int) -> None:
        super().__init__()
        self.model, self.stage = model, stage

    def forward(self, images: Tensor) -> Tensor:
        """Loss of a batch, a scalar."""
        return self.model.dense_step(images)[0] if self.stage == 1 else self.model.distill_step(images)


def train(
    rank: int,
    folder: str,
    backbone: str,
    batch: int,
    stage: int,
    steps: int,
    processes: int,
    ddp: bool,
    clock: Callable[[], float],
) -> None:
    """One process: train, and write the seconds of each step."""
    torch.set_num_threads(1)
    store = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    model = random_model(backbone).model
    loss: nn.Module = Loss(model, stage)
    if ddp:  # as Defend asks of Lightning, since each stage trains other parameters
        loss = DistributedDataParallel(loss, find_unused_parameters=True)
    optimizer = our_optimizer(model, stage)
    images = random_images(batch, model.image_size)
    if not ddp:
        distributed.barrier()
        distributed.destroy_process_group()  # else the assignment is shared between processes
    seconds = []
    for _ in range(steps + 1):
        start = clock()
        loss(images).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock() - start)
    (Path(folder) / f"seconds{rank}").write_text(" ".join(map(str, seconds[1:])))


def seconds_per_step(
    backbone: str, batch: int, stage: int, steps: int, way: str, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of all steps of all processes."""
    processes, ddp = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train, (folder, backbone, batch, stage, steps, processes, ddp, clock), nprocs=processes)  # type: ignore[attr-defined]
        return [float(word) for file in Path(folder).glob("seconds*") for word in file.read_text().split()]


def run(options: Options) -> Iterator[Result]:
    """Measure both stages with the first encoder; the ways take turns."""
    backbone, batch = options.backbones[0], 8 if options.quick else 16
    rows: list[dict[str, object]] = []
    figures = {}
    for stage in (1, 2):
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(1 if options.quick else min(3, options.repeats)):
            for way in WAYS:
                times[way] += seconds_per_step(backbone, batch, stage, 4 if options.quick else 8, way, options.clock)
        alone, apart, together = (statistics.median(values) for values in times.values())
        rows.append(
            {
                f"{backbone}, batch {batch} a process": f"stage {stage}",
                **{f"s per step, {way}": value for way, value in zip(WAYS, (alone, apart, together), strict=True)},
                "DDP, of ideal": alone / together,
                "lost to two busy cores": 1 - alone / apart,
                "lost to communication": 1 - apart / together,
            }
        )
        figures[f"stage{stage}_ddp_efficiency"] = alone / together
    yield Result(table(rows), figures)
