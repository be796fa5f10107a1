"""Memory of the training steps, each contender in a process of its own; does not depend on how busy the machine is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .networks import random_images, random_model
from .report import Options, Result, by_backbone, table
from .timing import in_fresh_process, peak_mib
from .training import OURS, STAGES, Step

if TYPE_CHECKING:
    from collections.abc import Iterator


def step_memory(backbone: str, batch: int, stage: int, name: str, threads: int) -> float:
    """Peak memory of two steps beyond model and images, in MiB: the second step has AdamW's state, too.

    To be called in a fresh process.
    """
    torch.set_num_threads(threads)
    model = random_model(backbone).model
    step = Step(model, random_images(batch, model.image_size), STAGES[stage][name], stage)
    return peak_mib(step.twice)


def run(options: Options) -> Iterator[Result]:
    """Measure both stages with each encoder; in a quick run, stage 1 alone, ours and the published one."""
    for backbone in options.backbones:
        for stage, contenders in STAGES.items():
            if options.quick and stage == 2:
                continue
            names = ("published", OURS[stage]) if options.quick else tuple(contenders)
            memory = {
                name: in_fresh_process(step_memory, backbone, options.batch, stage, name, options.threads)
                for name in names
            }
            rows: list[dict[str, object]] = [
                {
                    f"stage {stage}, {backbone}, batch {options.batch}": name,
                    "peak memory, MiB": mib,
                    "share of the published": mib / memory["published"],
                }
                for name, mib in memory.items()
            ]
            figures = {f"stage{stage}_memory_ratio": memory[OURS[stage]] / memory["published"]}
            yield Result(table(rows), by_backbone(figures, backbone, options))
