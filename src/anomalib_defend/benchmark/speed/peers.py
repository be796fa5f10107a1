"""Scoring beside anomalib's models on a ViT-S and nearest neighbours of [CLS]: torch, float32, random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from unittest import mock

import timm
import torch
from anomalib.models.image.anomaly_dino.torch_model import AnomalyDINOModel
from anomalib.models.image.dinomaly.torch_model import DinomalyModel
from anomalib.models.image.general_ad.torch_model import GeneralADModel
from torch import Tensor, nn

from anomalib_defend.models.dn2.torch_model import DN2Model

from .networks import random_images, random_model
from .report import Options, Result, table
from .timing import alternate, speedup

SIZE = (224, 224)
TRAINING_IMAGES = 200  # in the memories
OURS = "Defend, ViT-S/16"


def build() -> dict[str, tuple[nn.Module, str]]:
    """Models by name, and what each computes."""
    with mock.patch.object(timm, "create_model", _without_weights(timm.create_model)):
        dino = AnomalyDINOModel(encoder_name="vit_small_patch14_dinov2")
        dinomaly = DinomalyModel(encoder_name="vit_small_patch14_reg4_dinov2")
    dino.memory_bank = nn.functional.normalize(torch.randn(TRAINING_IMAGES * 256, 384), dim=-1)
    general = GeneralADModel("vit_small_patch16_224", layers=[12], image_size=SIZE, pre_trained=False)
    dn2 = DN2Model("vit_small_patch16_224", SIZE)
    dn2.memory = nn.functional.normalize(torch.randn(TRAINING_IMAGES, 384), dim=-1)
    return {
        OURS: (random_model("vit_small_patch16_224").model, "teacher and student, 196 tokens each"),
        "Defend, DeiT-Tiny/16": (random_model("deit_tiny_patch16_224").model, "teacher and student, 196 tokens each"),
        "DN2 (nearest neighbours of [CLS]), ViT-S/16": (dn2, f"encoder, {TRAINING_IMAGES} vectors"),
        "GeneralAD, ViT-S/16": (general, "encoder and discriminator"),
        "AnomalyDINO, ViT-S/14": (dino, f"encoder, 256 tokens; {TRAINING_IMAGES * 256} patches in memory"),
        "Dinomaly, ViT-S/14": (dinomaly, "encoder and 8 blocks of decoder, 256 tokens"),
    }


def _without_weights(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def create_random(*args: object, **kwargs: object) -> nn.Module:
        return create(*args, **{**kwargs, "pretrained": False})

    return create_random


def run(options: Options) -> Iterator[Result]:
    """Measure all models, one image and a batch at a time."""
    models = build()
    images = random_images(options.batch, SIZE)

    def calls(batch: int) -> dict[str, Callable[[], object]]:
        return {name: partial(_score, model, images[:batch]) for name, (model, _) in models.items()}

    for model, _ in models.values():
        model.eval()
    many = alternate(calls(options.batch), options.repeats, options.clock)
    one = alternate(calls(1), 2 * options.repeats, options.clock)
    rows: list[dict[str, object]] = [
        {
            "images/s": name,
            "computes": computes,
            f"batch {options.batch}": options.batch / median(many[name]),
            "batch 1": 1 / median(one[name]),
            "times as fast as Defend, ViT-S/16": speedup(many, OURS, name),
        }
        for name, (_, computes) in models.items()
    ]
    yield Result(table(rows))


@torch.inference_mode()
def _score(model: nn.Module, images: Tensor) -> None:
    model(images)
