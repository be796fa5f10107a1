"""What the paper's trainings would cost on large GPUs: a calculation from the counted operations, not a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anomalib_defend.models.defend.torch_model import DefendModel

from . import operations
from .report import Options, Result, table

BACKBONE = "vit_base_patch16_224"
PEAK = 312e12  # operations a second of an NVIDIA A100's dense bfloat16 products (data sheet)
UTILISATION = 0.35  # share of the peak; ViT trainings are reported at 0.3 to 0.5
SCALING = 0.9  # efficiency of each of 8 GPUs


class Job(NamedTuple):
    """A training of the paper."""

    name: str
    images: int
    dense_epochs: int = 3
    distill_epochs: int = 10


JOBS = (
    Job("CIFAR-10, one class", 5_000),
    Job("VOC 2012, leave-one-out (at most)", 5_717),
    Job("COCO, person", 64_000, dense_epochs=10),
)


def run(_options: Options) -> Iterator[Result]:
    """Multiply operations, images and epochs."""
    with torch.device("meta"):  # its shapes alone
        model = DefendModel(BACKBONE, (224, 224))
    stage1, student = operations.stage1(model), operations.stage2(model, cached=True)
    teacher = operations.stage2(model, cached=False) - student
    cached_bytes = model.student.patch_embed.num_patches * (2 * model.student.embed_dim + 4)
    rows: list[dict[str, object]] = []
    for job in JOBS:
        dense = job.images * job.dense_epochs * stage1
        distill = job.images * (job.distill_epochs * student + teacher)
        minutes = (dense + distill) / PEAK / UTILISATION / 60
        rows.append(
            {
                f"job, {BACKBONE}": job.name,
                "images": f"{job.images:,}",
                "epochs": f"{job.dense_epochs} + {job.distill_epochs}",
                "stage 1, PFLOP": dense / 1e15,
                "stage 2, PFLOP": distill / 1e15,
                "without cache, PFLOP": job.images * job.distill_epochs * (student + teacher) / 1e15,
                "cache, GB": job.images * cached_bytes / 1e9,
                "1 GPU, minutes": minutes,
                "8 GPUs, minutes": minutes / 8 / SCALING,
                "images/s to be read by 1 GPU": job.images * (job.dense_epochs + job.distill_epochs) / minutes / 60,
            }
        )
    assumptions = (
        f"Assumptions: A100, {PEAK / 1e12:.0f} TFLOP/s in bfloat16, of which {UTILISATION:.0%} are reached; on 8 of "
        f"them {SCALING:.0%} of 8 times that; images are read as fast as they are used; validation and the start are "
        f"left out. Per image: stage 1 {stage1 / 1e9:.0f} GFLOP, student {student / 1e9:.0f}, teacher "
        f"{teacher / 1e9:.0f}."
    )
    yield Result(f"{table(rows)}\n\n{assumptions}")
