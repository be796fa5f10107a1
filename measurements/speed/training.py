"""Training steps of both stages beside the published procedure: time, and share of the floor.

A step is forward, backward and AdamW, on images that are in memory already.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from anomalib_defend.benchmark.machine import has_bf16
from anomalib_defend.models.components.teacher_cache import CacheLayout, TeacherCache, reserve
from anomalib_defend.models.components.teacher_pass import CACHE_DTYPE
from anomalib_defend.models.defend.stages import dense_optimizer, distill_optimizer
from anomalib_defend.models.defend.torch_model import DefendModel
from anomalib_defend.nn import vit
from anomalib_defend.nn.distance import TeacherOutput

from . import operations, reference
from .machine import Floor
from .networks import random_images, random_model
from .report import Options, Result, by_backbone, table
from .timing import alternate, speedup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.optim import Optimizer


def our_dense_loss(model: DefendModel, images: Tensor) -> Tensor:
    """Stage 1 as `Defend` computes it."""
    return model.dense_step(images)[0]


def reference_dense_loss_view_once(model: DefendModel, images: Tensor) -> Tensor:
    """The published stage 1 with its first flaw mended."""
    return reference.dense_loss(model, images, view_once=True)


def distill_loss_fused_attention(model: DefendModel, images: Tensor, teacher: TeacherOutput | None = None) -> Tensor:
    """Stage 2 with torch's fused attention, where `Defend` takes plain products."""
    with mock.patch.object(vit, "attention_for", return_value=nullcontext()):
        return model.distill_step(images, teacher)


class Contender(NamedTuple):
    """One way to compute a stage's loss."""

    loss: Callable[..., Tensor]
    """Of model, images and, if it is cached, the teacher's output."""
    cached: bool = False
    bf16: bool = False
    optimizer: bool = True
    """Ours, not torch's default."""


OURS = {1: "Defend (+ crops in one pass, no loop, products upsampled)", 2: "Defend, cached teacher (+ fused AdamW)"}
OURS_BF16 = {1: "Defend, bf16-mixed", 2: "Defend, cached, bf16-mixed"}
STAGES: dict[int, dict[str, Contender]] = {
    1: {
        "published": Contender(reference.dense_loss, optimizer=False),
        "+ view assigned once, without graph": Contender(reference_dense_loss_view_once, optimizer=False),
        OURS[1]: Contender(our_dense_loss),
        OURS_BF16[1]: Contender(our_dense_loss, bf16=True),
    },
    2: {
        "published": Contender(reference.distill_loss, optimizer=False),
        "+ cached teacher": Contender(reference.distill_loss, cached=True, optimizer=False),
        "+ only kept patches embedded": Contender(DefendModel.distill_step, cached=True, optimizer=False),
        OURS[2]: Contender(DefendModel.distill_step, cached=True),
        "Defend, no cache (one teacher pass, [CLS] row only)": Contender(DefendModel.distill_step),
        "Defend, no cache, bf16-mixed": Contender(DefendModel.distill_step, bf16=True),
        "Defend, cached, bf16-mixed, fused attention": Contender(distill_loss_fused_attention, cached=True, bf16=True),
        OURS_BF16[2]: Contender(DefendModel.distill_step, cached=True, bf16=True),
    },
}


def our_optimizer(model: DefendModel, stage: int) -> Optimizer:
    """As `Defend` has it in that stage."""
    return dense_optimizer(model, 1e-5, 1e-4) if stage == 1 else distill_optimizer(model, 1e-5)


def make_cache(model: DefendModel, images: int, dtype: torch.dtype | None = None) -> TeacherCache:
    """An empty cache as `Defend` makes it, in a file without name; the images are called 0, 1, 2 ..."""
    layout = CacheLayout(images, model.teacher_shape, dtype or CACHE_DTYPE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache"
        reserve(file, layout.bytes)
        return TeacherCache(file, [str(number) for number in range(images)], layout)


class Step:
    """A training step of one contender, on the same images again and again.

    Args:
        model: The networks; contenders may share them.
        images: A batch, normalised.
        contender: How the loss is computed.
        stage: Of which stage, 1 or 2.
    """

    def __init__(self, model: DefendModel, images: Tensor, contender: Contender, stage: int) -> None:
        self.model, self.images, self.contender = model, images, contender
        self.names = [str(number) for number in range(len(images))]
        self.cache: TeacherCache | None = None
        if contender.cached:
            self.cache = make_cache(model, len(images))
            self.cache.write(0, model.teacher_output(images, attend=True))
        self.optimizer: Optimizer = (
            our_optimizer(model, stage)
            if contender.optimizer
            else torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)
        )

    def __call__(self) -> None:
        """Make one step."""
        self.model.student.train()
        with torch.autocast("cpu", torch.bfloat16) if self.contender.bf16 else nullcontext():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.model.zero_grad()

    def twice(self) -> None:
        """Make two steps."""
        self()
        self()

    def loss(self) -> Tensor:
        """The loss alone."""
        teacher = () if self.cache is None else (self.cache.read(self.names, self.images.device),)
        return self.contender.loss(self.model, self.images, *teacher)


def contenders(stage: int) -> dict[str, Contender]:
    """Those of a stage that the processor has the arithmetic for: emulated bf16 tells nothing."""
    return {name: contender for name, contender in STAGES[stage].items() if has_bf16() or not contender.bf16}


def make_steps(backbone: str, batch: int, stage: int) -> dict[str, Step]:
    """All contenders of a stage on one model."""
    model = random_model(backbone).model
    images = random_images(batch, model.image_size).sub_(0.5).div_(0.5)
    return {name: Step(model, images, contender, stage) for name, contender in contenders(stage).items()}


def measure(backbone: str, stage: int, options: Options) -> tuple[str, dict[str, float]]:
    """Table and figures of one stage with one encoder."""
    steps = make_steps(backbone, options.batch, stage)
    model = next(iter(steps.values())).model
    tokens = options.batch * (model.grid[0] * model.grid[1] + 1)
    floor = Floor(model.teacher, tokens, options.threads)
    times = alternate({**steps, **floor.calls}, options.repeats, options.clock)
    floors: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for name, step in steps.items():
        contender = step.contender
        flop = operations.stage1(model) if stage == 1 else operations.stage2(model, contender.cached)
        shortest = floor.seconds(times, options.batch * flop, single=not contender.bf16)
        floors[name] = shortest / median(times[name])
        rows.append(
            {
                f"stage {stage}, {backbone}": name,
                "ms per image": 1000 * median(times[name]) / options.batch,
                "times as fast": speedup(times, "published", name),
                "share of its floor": floors[name],
                "GFLOP per image": flop / 1e9,
            }
        )
    figures = {
        f"stage{stage}_speedup": speedup(times, "published", OURS[stage]),
        f"stage{stage}_fraction_of_floor": floors[OURS[stage]],
    }
    rates_line = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {name}" for name, rate in floor.rates(times).items())
    return f"{table(rows)}\n\nMeanwhile: {rates_line}.", figures


def run(options: Options) -> Iterator[Result]:
    """Measure both stages with each encoder."""
    for backbone in options.backbones:
        for stage in STAGES:
            markdown, figures = measure(backbone, stage, options)
            yield Result(markdown, by_backbone(figures, backbone, options))
