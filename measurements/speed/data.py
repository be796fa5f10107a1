"""Whether reading images keeps up: decoding and resizing beside the training step, with no and with two workers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data.utils import read_image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .networks import photographs, random_model
from .report import Options, Result, table
from .timing import alternate
from .training import OURS, OURS_BF16, STAGES, Step, contenders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anomalib_defend.models import Defend

WORKERS = 2


class Photographs(Dataset[Any]):
    """Files, decoded and resized as the engine does."""

    def __init__(self, paths: list[Path], model: Defend) -> None:
        self.paths, self.transform = paths, model.pre_processor.transform

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """One image, [3, H, W]."""
        return self.transform(read_image(self.paths[index], as_tensor=True))


def split(step: Step, dataset: Photographs, batch: int, workers: int) -> tuple[float, float]:
    """Milliseconds per image that a training waits for images, and that it computes."""
    loader = DataLoader(dataset, batch, num_workers=workers, worker_init_fn=_one_thread, drop_last=True)
    waits, steps = [], []
    before = time.perf_counter()
    for images in loader:
        loaded = time.perf_counter()
        step.images = images
        step()
        waits.append(loaded - before)
        before = time.perf_counter()
        steps.append(before - loaded)
    # the first batch waits for the workers to start, once an epoch
    return tuple(1000 * median(times[1:]) / batch for times in (waits, steps))  # type: ignore[return-value]


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def run(options: Options) -> Iterator[Result]:
    """Measure with the first encoder, whose steps are the shortest."""
    backbone = options.backbones[0]
    model = random_model(backbone)
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(options.images, options.batch * (4 if options.quick else 10), Path(folder))
        dataset = Photographs(paths, model)
        sample = paths[: options.batch]
        reading = alternate(
            {
                "decode": lambda: [read_image(path, as_tensor=True) for path in sample],
                "decode, resize and normalise": lambda: [dataset[index] for index in range(len(sample))],
            },
            options.repeats,
            options.clock,
        )
        rows: list[dict[str, object]] = []
        figures = {}
        for stage, name in (*OURS.items(), *OURS_BF16.items()):
            if name not in contenders(stage):
                continue
            precision = "bf16" if STAGES[stage][name].bf16 else "float32"
            images = torch.stack([dataset[index] for index in range(options.batch)])
            step = Step(model.model, images, STAGES[stage][name], stage)
            for workers in (0, WORKERS):
                waited, computed = split(step, dataset, options.batch, workers)
                share = waited / (waited + computed)
                rows.append(
                    {
                        backbone: f"stage {stage}{', cached teacher' if stage == 2 else ''}, {precision}",
                        "workers": workers,
                        "ms per image waiting for data": waited,
                        "ms per image computing": computed,
                        "share waiting": share,
                    }
                )
                figures[f"stage{stage}_waiting_share_{workers}_workers_{precision}"] = share
    each = ", ".join(f"{name} {1000 * median(times) / len(sample):.1f} ms" for name, times in reading.items())
    yield Result(f"{table(rows)}\n\nOne image in one process: {each}.", figures)
