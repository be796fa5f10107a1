"""What docs/reproduce.md calculates with, counted by torch."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from anomalib_defend.models.fitymi.generator import Generator
from measurements import reproduction

NAMES = {"vit_base": "vit_base_patch16_224", "vit_small": "vit_small_patch16_224"}


@pytest.mark.parametrize(("name", "gflop"), reproduction.PASSES.items())
def test_operations_of_a_pass(name, gflop):
    name, _, size = name.partition(" at ")
    side = int(size or (384 if name.endswith("384") else 224))
    with torch.device("meta"):
        encoder = timm.create_model(NAMES.get(name, name), num_classes=0).eval()
        if name.startswith("vgg16"):
            encoder = encoder.features  # up to the poolings that KDAD reads
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            encoder(torch.empty(1, 3, side, side))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.02)


def test_operations_of_the_generator():
    with torch.device("meta"):
        generator = Generator(32, (128, 256, 256, 256)).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            generator.unet(torch.empty(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    assert counter.get_total_flops() / 1e9 == pytest.approx(reproduction.GENERATOR, rel=0.02)
