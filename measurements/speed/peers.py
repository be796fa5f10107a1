"""Scoring beside anomalib's models on a ViT-S and nearest neighbours of [CLS], from memory and from files.

Random weights. Torch in float32 for all of them, and OpenVINO's default for `Defend` and `DN2`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import timm
import torch
from anomalib.data.utils import read_image
from anomalib.models.image.anomaly_dino.torch_model import AnomalyDINOModel
from anomalib.models.image.dinomaly.torch_model import DinomalyModel
from anomalib.models.image.general_ad.torch_model import GeneralADModel
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from anomalib_defend.models import DN2, Defend

from .exports import scorer
from .networks import photographs, random_images, random_model
from .report import Options, Result, table
from .timing import alternate, speedup

SIZE = (224, 224)
TRAINING_IMAGES = 200  # in the memories
OURS = "Defend, ViT-S/16"
NEIGHBORS = "DN2 (nearest neighbours of [CLS]), ViT-S/16"


def random_dn2() -> DN2:
    """Nearest neighbours that count as found."""
    dn2 = DN2("vit_small_patch16_224", pre_trained=False, visualizer=False)
    dn2.model.normality.fit(nn.functional.normalize(torch.randn(TRAINING_IMAGES, 384), dim=-1))
    dn2.trained_steps.fill_(1)
    dn2.post_processor.enable_thresholding = False  # nothing was validated
    return dn2


def build(threads: int, folder: Path) -> dict[str, tuple[Callable[[Tensor], object], str]]:
    """Contenders by name: a call that takes images in [0, 1], and what it computes."""
    with mock.patch.object(timm, "create_model", _without_weights(timm.create_model)):
        dino = AnomalyDINOModel(encoder_name="vit_small_patch14_dinov2")
        dinomaly = DinomalyModel(encoder_name="vit_small_patch14_reg4_dinov2")
    dino.memory_bank = nn.functional.normalize(torch.randn(TRAINING_IMAGES * 256, 384), dim=-1)
    general = GeneralADModel("vit_small_patch16_224", layers=[12], image_size=SIZE, pre_trained=False)
    defend, dn2 = random_model("vit_small_patch16_224"), random_dn2()
    twice = "teacher and student, 196 tokens each"
    memory = f"encoder, {TRAINING_IMAGES} vectors"

    def openvino(model: Defend | DN2, name: str) -> Callable[[Tensor], object]:
        score = scorer(model.to_openvino(folder / name), threads)
        return lambda images: score(images.numpy())

    return {
        OURS: (_eager(defend), twice),
        "Defend, DeiT-Tiny/16": (_eager(random_model("deit_tiny_patch16_224")), twice),
        NEIGHBORS: (_eager(dn2), memory),
        "GeneralAD, ViT-S/16": (_eager(general), "encoder and discriminator"),
        "AnomalyDINO, ViT-S/14": (
            _eager(dino),
            f"encoder, 256 tokens; {TRAINING_IMAGES * 256} patches in memory",
        ),
        "Dinomaly, ViT-S/14": (_eager(dinomaly), "encoder and 8 blocks of decoder, 256 tokens"),
        f"{OURS}, OpenVINO": (openvino(defend, "defend"), twice),
        f"{NEIGHBORS}, OpenVINO": (openvino(dn2, "dn2"), memory),
    }


def _without_weights(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def create_random(*args: object, **kwargs: object) -> nn.Module:
        return create(*args, **{**kwargs, "pretrained": False})

    return create_random


def _eager(model: nn.Module) -> Callable[[Tensor], object]:
    return torch.inference_mode()(model.eval())


def run(options: Options) -> Iterator[Result]:
    """Measure all models, one image and a batch at a time."""
    batch, rounds, clock = options.batch, options.repeats, options.clock
    images = random_images(batch, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(options.images, batch, Path(folder) / "photographs")
        contenders = build(options.threads, Path(folder))

        def read(count: int) -> Tensor:
            files = [read_image(path, as_tensor=True) for path in paths[:count]]
            return torch.stack([resize(image, SIZE, antialias=True) for image in files])

        def calls(prepare: Callable[[], Tensor]) -> dict[str, Callable[[], object]]:
            return {name: partial(_prepare_and_score, prepare, score) for name, (score, _) in contenders.items()}

        many = alternate(calls(lambda: images), rounds, clock)
        one = alternate(calls(lambda: images[:1]), 2 * rounds, clock)
        files = alternate(calls(partial(read, batch)), rounds, clock)
        file = alternate(calls(partial(read, 1)), 2 * rounds, clock)
    rows: list[dict[str, object]] = [
        {
            "images/s": name,
            "computes": computes,
            f"batch {batch}": batch / median(many[name]),
            "batch 1": 1 / median(one[name]),
            f"files, batch {batch}": batch / median(files[name]),
            "files, one by one": 1 / median(file[name]),
            "times as fast as Defend, ViT-S/16": speedup(many, OURS, name),
        }
        for name, (_, computes) in contenders.items()
    ]
    yield Result(table(rows))


def _prepare_and_score(prepare: Callable[[], Tensor], score: Callable[[Tensor], object]) -> None:
    score(prepare())
