"""Optimisers, rates, lengths and schedules of the papers or their code, as numbers (MSAD, PANDA: their files)."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch.optim import Adam, AdamW

from anomalib_defend import FCDD, KDAD, DeepSVDD, Transformaly, UniAD
from encoders import MINIATURE, MINIATURE_VGG


class Published(NamedTuple):
    """Of one stage; ``drops`` are the learning rates, as shares of the first, from an epoch on (counted from 0)."""

    optimizer: type[torch.optim.Optimizer]
    lr: float
    weight_decay: float
    epochs: int
    drops: Mapping[int, float] = {}
    clip: float | None = None


SETTINGS = {  # with the arguments' defaults, but for an encoder that is smaller
    "KDAD, VGG": (KDAD, {"backbone": MINIATURE_VGG}, [Published(Adam, 1e-3, 0, 200)]),
    "KDAD, ViT": (KDAD, {"backbone": MINIATURE}, [Published(AdamW, 1e-3, 0.01, 10, {10: 0.5, 20: 0.25})]),
    "Transformaly": (Transformaly, {"backbone": MINIATURE}, [Published(Adam, 1e-4, 0, 30)]),
    "UniAD": (UniAD, {"backbone": "test_efficientnet"}, [Published(AdamW, 1e-4, 1e-4, 1000, {800: 0.1}, clip=0.1)]),
    "Deep SVDD": (
        DeepSVDD, {}, [Published(Adam, 1e-4, 0.5e-6, 350, {250: 0.1}), Published(Adam, 1e-4, 0.5e-6, 150, {50: 0.1})],
    ),
    "FCDD": (FCDD, {}, [Published(Adam, 1e-3, 1e-6, 600, {400: 0.1, 500: 0.01})]),
}  # fmt: skip


@pytest.mark.parametrize(("model_class", "arguments", "stages"), SETTINGS.values(), ids=SETTINGS)
def test_the_defaults_are_the_published_ones(model_class, arguments, stages):
    model = model_class(**arguments, **({"pre_trained": False} if "backbone" in arguments else {}))
    for stage, published in zip(model.stages(), stages, strict=True):
        assert stage.plan(SimpleNamespace(is_trial=False)) == published.epochs
        assert stage.gradient_clip == published.clip
        optimizer, scheduler = _parts(stage.optimizers())
        assert type(optimizer) is published.optimizer
        (group,) = optimizer.param_groups
        assert (group["weight_decay"], group["betas"]) == (published.weight_decay, (0.9, 0.999))
        rates = _rates(optimizer, scheduler, max(published.epochs, *published.drops, 0) + 1)
        for epoch, rate in enumerate(rates):
            last = max((drop for drop in published.drops if drop <= epoch), default=None)
            assert rate == pytest.approx(published.lr * (1 if last is None else published.drops[last])), epoch


def _parts(optimizers: Any) -> tuple[torch.optim.Optimizer, Any]:
    if isinstance(optimizers, torch.optim.Optimizer):
        return optimizers, None
    scheduler = optimizers["lr_scheduler"]
    if isinstance(scheduler, Mapping):
        assert scheduler["interval"] == "epoch"
        scheduler = scheduler["scheduler"]
    return optimizers["optimizer"], scheduler


def _rates(optimizer: torch.optim.Optimizer, scheduler: Any, epochs: int) -> list[float]:
    """The learning rate of each epoch."""
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # without gradients
        if scheduler is not None:
            scheduler.step()
    return found
